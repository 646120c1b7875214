"""Convolutions some rows of images at a time: whole images, strips of one, uneven ends."""

import pytest
import torch

from cnnfast import ops, reference

from .support import needs_extension

pytestmark = needs_extension

# images, input channels, height, width, output channels, kernel, padding
SHAPES = [
    (41, 16, 12, 20, 24, (3, 3), (1, 1)),  # several images at a time, the last chunk smaller
    (9, 8, 42, 120, 16, (3, 3), (1, 1)),  # strips of an image, the last one lower
    (3, 5, 131, 150, 7, (3, 3), (1, 1)),  # channels that fill no vector
    (17, 24, 23, 29, 40, (5, 5), (2, 2)),
    (10, 64, 28, 28, 64, (3, 3), (1, 1)),
    (40, 20, 12, 12, 24, (5, 5), (0, 0)),  # the size changes: whole images
    (33, 6, 14, 15, 16, (5, 5), (3, 1)),
    (40, 8, 13, 11, 9, (1, 3), (2, 4)),  # more padding than the kernel reaches over
    (12, 8, 40, 60, 16, (7, 1), (3, 0)),  # strips again
]
ALL = [True, True, True]


def images(*sizes, dtype=torch.float32, layout=torch.channels_last):
    return torch.randn(*sizes).to(dtype).contiguous(memory_format=layout)


def tensors_of(shape, dtype, layout=torch.channels_last):
    count, channels, height, width, out, kernel, padding = shape
    torch.manual_seed(0)
    input = images(count, channels, height, width, dtype=dtype, layout=layout)
    weight = (torch.randn(out, channels, *kernel) / (channels * kernel[0] * kernel[1]) ** 0.5).to(dtype)
    places = [size + 2 * p - k + 1 for size, p, k in zip((height, width), padding, kernel, strict=True)]
    output, grad = (images(count, out, *places, dtype=dtype, layout=layout) for _ in range(2))
    return input, weight, output, grad


def places(shape):
    return [1, 1], list(shape[-1]), [1, 1], 1


def near(found, expected, dtype, kernel, roundings=1):
    """Within so many roundings of the largest value, and of the root mean square."""
    difference = (found.double() - expected).abs()
    scale = expected.abs().max()
    largest, mean = (2e-5, 4e-6) if kernel != (5, 5) else (4e-5, 1e-5)  # its tiles lose more
    if dtype == torch.bfloat16:
        largest = mean = 2.0**-8
    assert difference.max() <= roundings * largest * scale
    assert difference.square().mean().sqrt() <= mean * expected.square().mean().sqrt() + 1e-9


def expected_gradients(grad, input, weight, output, activation, shape):
    """In float64, from the given output: a mask where it is positive."""
    grad = grad.double()
    if activation == "relu":
        grad = grad * (output > 0)
    return torch.ops.aten.convolution_backward(
        grad, input.double(), weight.double(), [weight.shape[0]], *places(shape)[:3], False, [0, 0], 1, ALL
    )


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape, dtype, activation):
    input, weight, output, grad = tensors_of(shape, dtype)
    found = torch.ops.cnnfast.conv2d_backward(
        grad, input, weight, None, output, *places(shape), activation, [*ALL, False, False]
    )
    for own, expected in zip(
        found, expected_gradients(grad, input, weight, output, activation, shape), strict=False
    ):
        near(own, expected, dtype, shape[5])


@pytest.mark.parametrize("wanted", [[True, False, False], [False, True, False], [False, True, True]], ids=str)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_gradients_that_are_wanted(shape, wanted):
    input, weight, output, grad = tensors_of(shape, torch.float32)
    arguments = (grad, input, weight, None, output, *places(shape), "relu")
    all = torch.ops.cnnfast.conv2d_backward(*arguments, [*ALL, False, False])
    some = torch.ops.cnnfast.conv2d_backward(*arguments, [*wanted, False, False])
    for own, expected, is_wanted in zip(some, all, wanted, strict=False):
        assert (own.numel() > 0) == is_wanted
        if is_wanted:
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


# images, input channels, height, width, output channels, kernel, stride, padding
STRIDED = [
    (20, 8, 96, 95, 32, 7, 2, 3),  # strips of an image
    (5, 6, 121, 130, 40, 3, 3, 1),
    (40, 9, 21, 22, 16, 5, 2, 0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", STRIDED, ids=str)
def test_weight_gradient_of_strides(shape, dtype):
    """Of first layers, whose input has no gradient, behind a batch norm."""
    count, channels, height, width, out, kernel, stride, padding = shape
    torch.manual_seed(0)
    input = images(count, channels, height, width, dtype=dtype)
    weight = (torch.randn(out, channels, kernel, kernel) / (kernel * channels**0.5)).to(dtype)
    places = {"stride": stride, "padding": padding, "activation": "none"}  # no decisions to differ in
    weights = [weight.requires_grad_(), weight.detach().double().requires_grad_()]
    own = ops.conv2d_batch_norm(input, weights[0], **places)[0]
    cotangent = torch.randn_like(own)
    own.backward(cotangent)
    reference.conv2d_batch_norm(input.double(), weights[1], **places)[0].backward(cotangent.double())
    difference = (weights[0].grad.double() - weights[1].grad).abs().max() / weights[1].grad.abs().max()
    assert difference <= (0.02 if dtype == torch.bfloat16 else 2e-5)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, dtype, layout):
    input, weight, residual, _ = tensors_of(shape, dtype, layout)
    bias = torch.randn(weight.shape[0]).to(dtype)
    found = ops.conv2d(input, weight, bias, None, residual, *places(shape), activation="relu")
    wide = [t.double() for t in (input, weight, bias)]
    expected = reference.conv2d(*wide, None, residual.double(), *places(shape), activation="relu")
    near(found, expected, dtype, shape[5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_values_behind_batch_norm(shape, dtype):
    input, weight, _, _ = tensors_of(shape, dtype)
    mean, factor, shift = torch.randn(3, input.shape[1])
    var = torch.rand(input.shape[1]) + 0.5
    rest = (None, factor, shift, mean, var, None)
    padding = places(shape)[1]
    found = ops.bn_act_conv2d(input, weight, *rest, padding=padding, pre_activation="relu")[0]
    wide = [t.double() if isinstance(t, torch.Tensor) else t for t in (input, weight, *rest)]
    expected = reference.bn_act_conv2d(*wide, padding=padding, pre_activation="relu")[0]
    # Where pairs are multiplied what is normalised is rounded first.
    near(found, expected, dtype, shape[5], roundings=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_do_not_depend_on_threads(shape, dtype):
    input, weight, output, grad = tensors_of(shape, dtype)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            gradients = torch.ops.cnnfast.conv2d_backward(
                grad, input, weight, None, output, *places(shape), "relu", [*ALL, False, False]
            )
            found.append([ops.conv2d(input, weight, None, None, None, *places(shape)), *gradients])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_nan_stays_near(shape, place):
    """A NaN reaches the outputs and gradients of its image alone, whatever a chunk holds beside it."""
    input, weight, output, grad = tensors_of(shape, torch.float32)
    input[place, 0, 0, 0] = float("nan")
    grad[place, 0, -1, -1] = float("nan")
    values = ops.conv2d(input, weight, None, None, None, *places(shape))
    of_input = torch.ops.cnnfast.conv2d_backward(
        grad, input, weight, None, output, *places(shape), "none", [True, True, False, False, False]
    )[0]
    for found in (values, of_input):
        nan = found.isnan().flatten(1).any(1)
        assert bool(nan[place]) and int(nan.sum()) == 1
