"""max_pool2d and avg_pool2d against torch.nn.functional in float64, forward and backward."""

import itertools

import pytest
import torch

from cnnfast import ops, reference

from .support import LAYOUTS, assert_near, doubles, gradients, in_layout, needs_extension, poison

SIZES = [(8, 8), (9, 7), (1, 5), (12, 13)]
# kernel, stride, padding
WINDOWS = [
    (2, None, 0),
    (2, 2, 0),
    (3, 2, 0),
    (3, 2, 1),
    (3, 1, 1),
    (1, 1, 0),
    (1, 2, 0),
    ((1, 3), (1, 2), (0, 1)),
    ((1, 2), (3, 1), 0),
    (5, 3, 2),
    ((4, 3), (2, 4), (2, 1)),
]


def fits(size, kernel, padding, dilation=1):
    pairs = zip(size, *(p if isinstance(p, tuple) else (p, p) for p in (kernel, padding)), strict=True)
    return all(n + 2 * p >= dilation * (k - 1) + 1 for n, k, p in pairs)


CASES = [(size, *window) for size in SIZES for window in WINDOWS if fits(size, window[0], window[2])]


def check(name, input, *args, relative=1e-6):
    input = input.detach().requires_grad_()
    exact = doubles([input])
    truth = getattr(reference, name)(*exact, *args)
    poison(truth.shape, input.shape)
    output = getattr(ops, name)(input, *args)
    assert output.dtype == input.dtype
    assert_near(output, truth, relative)
    cotangent = torch.randn(truth.shape)
    poison(input.shape)
    (own,), (true,) = gradients(output, cotangent, [input]), gradients(truth, cotangent, exact)
    assert_near(own, true, max(1e-5, relative))


@pytest.mark.parametrize("channels", [1, 5, 16, 35])
@pytest.mark.parametrize("size, kernel, stride, padding", CASES, ids=str)
def test_max_pool2d(size, kernel, stride, padding, channels):
    for ceil_mode, layout in itertools.product((False, True), ("nchw", "channels_last")):
        input = in_layout(torch.randn(2, channels, *size), layout)
        check("max_pool2d", input, kernel, stride, padding, 1, ceil_mode)


@pytest.mark.parametrize("channels", [1, 5, 16, 35])
@pytest.mark.parametrize("size, kernel, stride, padding", CASES, ids=str)
def test_avg_pool2d(size, kernel, stride, padding, channels):
    for ceil_mode, counted, divisor in itertools.product((False, True), (False, True), (None, 3)):
        for layout in ("nchw", "channels_last"):
            input = in_layout(torch.randn(2, channels, *size), layout)
            check("avg_pool2d", input, kernel, stride, padding, ceil_mode, counted, divisor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "window", [(2, None, 0), (3, 1, 1), ((4, 5), (3, 4), (1, 2)), ((2, 5), 1, 0)], ids=str
)
@pytest.mark.parametrize(
    "channels, size", [(6, (29, 28)), (64, (5, 90)), (3, (4, 1100)), (130, (6, 7))], ids=str
)
def test_avg_pool2d_rows_together_and_in_parts(channels, size, window, dtype):
    """Short rows are summed several at a time, long ones in blocks, and very long ones window by window."""
    input = torch.randn(3, channels, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    check("avg_pool2d", input, *window, relative=1e-6 if dtype == torch.float32 else 8e-3)


@pytest.mark.parametrize("dilation", [2, (1, 3), (3, 2)], ids=str)
@pytest.mark.parametrize("padding", [0, 1])
def test_max_pool2d_dilation(dilation, padding):
    for ceil_mode in (False, True):
        check("max_pool2d", torch.randn(2, 6, 11, 12), 3, 2, padding, dilation, ceil_mode)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(7, 8), (1, 1), (1, 6)], ids=str)
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_pool2d_layout(name, size, layout):
    for channels, batch in itertools.product((1, 6), (1, 3)):
        input = in_layout(torch.randn(batch, channels, *size), layout)
        check(name, input, 3, 2, 1)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_pool2d_expanded_input_and_cotangent(name):
    input = torch.randn(1, 4, 8, 8).expand(3, 4, 8, 8).detach().requires_grad_()
    getattr(ops, name)(input, 2).sum().backward()
    exact = input.detach().double().requires_grad_()
    getattr(reference, name)(exact, 2).sum().backward()
    assert_near(input.grad, exact.grad)


def test_max_pool2d_keeps_nan_and_infinities():
    input = torch.randn(1, 20, 9, 9)
    input[0, 3, 4, 4] = float("nan")
    input[0, 5] = -float("inf")
    input[0, 6, 0, 0] = float("inf")
    for layout in ("nchw", "channels_last"):
        check("max_pool2d", in_layout(input, layout), 3, 2, 1)


def test_avg_pool2d_keeps_nan_and_infinities():
    input = torch.randn(1, 20, 9, 9)
    input[0, 3, 4, 4] = float("nan")
    input[0, 6, 0, 0] = float("inf")
    for layout in ("nchw", "channels_last"):
        check("avg_pool2d", in_layout(input, layout), 3, 2, 1)


def test_max_pool2d_gradient_goes_to_the_first_of_equals():
    input = torch.zeros(2, 17, 8, 8)
    for layout in ("nchw", "channels_last"):
        for window in ((2, 2, 0), (3, 1, 1), (3, 2, 1)):
            check("max_pool2d", in_layout(input, layout), *window)
    check("max_pool2d", torch.randint(0, 3, (2, 17, 9, 9)).float(), 3, 2, 1)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [(2, 2, 0, 1), (3, 2, 1, 1), (3, 1, 1, 1), (2, 2, 1, 2)], ids=str)
def test_max_pool2d_gradient_of_any_count_of_channels(window, dtype):
    """Vectors of channels, their halves and quarters, and what is left. Small integers: sums are exact."""
    for channels in (1, 2, 3, 4, 6, 7, 8, 11, 12, 15, 16, 20, 23, 24, 28, 31, 40, 47):
        input = torch.randint(-3, 3, (2, channels, 10, 9)).to(dtype).to(memory_format=torch.channels_last)
        leaf, exact = input.clone().requires_grad_(), input.double().requires_grad_()
        output, truth = ops.max_pool2d(leaf, *window), reference.max_pool2d(exact, *window)
        cotangent = torch.randint(-4, 5, output.shape).to(dtype)
        found = torch.autograd.grad(output, leaf, cotangent)[0]
        expected = torch.autograd.grad(truth, exact, cotangent.double())[0]
        assert found.dtype == dtype and torch.equal(found.double(), expected)


@needs_extension
@pytest.mark.parametrize("layout", ["channels_last", "channel_slice", "sliced"])
@pytest.mark.parametrize("window", [2, 3, (2, 3), (3, 2), (1, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("channels", [3, 8, 16, 24, 32, 41])
def test_max_pool2d_gradient_of_windows_apart_in_bfloat16(channels, window, layout):
    """Signed zeros, infinities and NaN too; the gradient is what was given, or zero, bit for bit."""
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0.0, -0.0, 1.0, 1.0, -2.0, float("inf"), -float("inf"), float("nan"), 3e38])
    choice = torch.randint(0, len(values), (2, channels, 13, 23), generator=generator)
    input = in_layout(values[choice].bfloat16(), layout)
    exact = input.float().requires_grad_()
    truth = torch.nn.functional.max_pool2d(exact, window)
    cotangent = torch.randn(truth.shape, generator=generator).bfloat16()
    expected = torch.autograd.grad(truth, exact, cotangent.float())[0].bfloat16()
    threads = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        leaf = input.detach().requires_grad_()
        poison(input.shape)
        output = ops.max_pool2d(leaf, window)
        assert torch.equal(torch.autograd.grad(output, leaf, in_layout(cotangent, layout))[0], expected)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "name, window",
    [
        ("max_pool2d", (2, 2, 0, 1)),
        ("max_pool2d", (3, 2, 1, 1)),
        ("max_pool2d", (3, 1, 1, 2)),
        ("max_pool2d", (5, 4, 2, 1)),
        ("avg_pool2d", (2, 2, 0)),
        ("avg_pool2d", (3, 2, 1)),
        ("avg_pool2d", (3, 1, 1)),
        ("avg_pool2d", (2, 3, 0)),
    ],
    ids=str,
)
def test_pool2d_gradient_does_not_depend_on_threads(name, window):
    input = torch.randint(0, 5, (2, 20, 41, 40)).float().to(memory_format=torch.channels_last)
    results, threads = [], torch.get_num_threads()
    cotangent = None
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            leaf = input.clone().requires_grad_()
            output = getattr(ops, name)(leaf, *window)
            cotangent = torch.randn_like(output) if cotangent is None else cotangent
            results.append(torch.autograd.grad(output, leaf, cotangent)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)
    exact = input.double().requires_grad_()
    assert_near(results[0], gradients(getattr(reference, name)(exact, *window), cotangent, [exact])[0], 1e-5)


@needs_extension
def test_max_pool2d_backward_checks_the_gradient():
    input = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=r"grad_output has shape \[2, 3, 4, 5\]"):
        torch.ops.cnnfast.max_pool2d_backward(
            torch.randn(2, 3, 4, 5), input, [2, 2], [2, 2], [0, 0], [1, 1], False
        )


@needs_extension
def test_avg_pool2d_backward_checks_its_arguments():
    input = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    backward = torch.ops.cnnfast.avg_pool2d_backward
    with pytest.raises(RuntimeError, match=r"avg_pool2d_backward: grad_output has shape \[2, 3, 4, 5\]"):
        backward(torch.randn(2, 3, 4, 5), input, [2, 2], [2, 2], [0, 0], False, True, None)
    with pytest.raises(RuntimeError, match="divisor_override must not be 0"):
        backward(torch.randn(2, 3, 4, 4), input, [2, 2], [2, 2], [0, 0], False, True, 0)


def test_max_pool2d_gradient_of_a_window_of_nan():
    input = torch.randn(1, 3, 6, 6)
    input[0, 1, 2:4, 2:4] = float("nan")
    check("max_pool2d", input, 2)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_pool2d_batch_of_zero(name):
    input = torch.randn(0, 4, 8, 8, requires_grad=True)
    output = getattr(ops, name)(input, 2)
    assert output.shape == (0, 4, 4, 4)
    output.sum().backward()
    assert input.grad.shape == input.shape


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_pool2d_one_image_without_batch(name):
    check(name, torch.randn(5, 8, 9), 2)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_pool2d_output_is_memory_of_its_own(name):
    input = torch.randn(2, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    output = getattr(ops, name)(input, 1)
    assert torch.equal(output, input)
    assert output.untyped_storage().data_ptr() != input.untyped_storage().data_ptr()


@needs_extension
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_pool2d_output_is_channels_last(name, layout):
    output = getattr(ops, name)(in_layout(torch.randn(2, 5, 8, 8), layout), 3, 2)
    assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_pool2d_gradcheck(name):
    values = torch.randperm(2 * 3 * 6 * 5).view(2, 3, 6, 5).double().requires_grad_()  # no ties within 1e-6
    assert torch.autograd.gradcheck(lambda x: getattr(ops, name)(x, 3, 2, 1), [values])


@needs_extension
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_pool2d_second_derivative_is_an_error(name):
    input = torch.randn(1, 2, 6, 6, requires_grad=True)
    output = getattr(ops, name)(input, 2).square()
    (first,) = torch.autograd.grad(output.sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match=f"cnnfast::{name}"):
        torch.autograd.grad(first.sum(), input)
