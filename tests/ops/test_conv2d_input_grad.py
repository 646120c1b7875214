"""conv2d_input_grad against float64: strides as phases, dilation, groups, paddings beyond the kernel."""

import itertools

import pytest
import torch

from .geometries import GEOMETRIES
from .support import LAYOUTS, assert_near, in_layout, needs_extension, poison

pytestmark = needs_extension


def _true_gradient(grad, input, weight, options):
    leaf = input.double().detach().requires_grad_()
    output = torch.nn.functional.conv2d(leaf, weight.double(), None, **options)
    return torch.autograd.grad(output, leaf, grad.double())[0]


def _check(grad, input, weight, options, relative=2e-5):
    truth = _true_gradient(grad, input, weight, options)
    poison(input.shape)
    found = torch.ops.cnnfast.conv2d_input_grad(grad, input, weight, **options)
    assert found.stride() == torch.empty_like(input).stride()
    assert_near(found, truth, relative)
    return found


def _case(size, kernel, stride, padding, dilation=(1, 1), groups=1, channels=(16, 24), batch=2):
    inputs, outputs = channels
    input = torch.randn(batch, inputs, *size)
    weight = torch.randn(outputs, inputs // groups, *kernel)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    options = {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}
    shape = torch.nn.functional.conv2d(input, weight, None, **options).shape
    return torch.randn(shape), input, weight, options


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_conv2d_input_grad(geometry):
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in geometry.options.items()}
    _check(torch.randn(geometry.output_shape()), geometry.input(), geometry.weight(), options)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (3, 3), (5, 4), (7, 7)], ids=str)
@pytest.mark.parametrize("stride", [(1, 2), (2, 2), (3, 2), (4, 5)], ids=str)
def test_conv2d_input_grad_of_every_phase(kernel, stride):
    """Every remainder of the size by the stride, and paddings from none to beyond the kernel."""
    for extra, padding in itertools.product(range(4), ((0, 0), (1, 2), kernel)):
        _check(*_case((9 + extra, 12 - extra), kernel, stride, padding))


def test_conv2d_input_grad_where_the_last_rows_are_not_read():
    grad, input, weight, options = _case((12, 11), (2, 2), (5, 4), (0, 0))
    found = _check(grad, input, weight, options)
    assert not found[:, :, 7:10].any() and not found[:, :, :, 6:8].any()


@pytest.mark.parametrize("groups", [2, 4, 32])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1)], ids=str)
def test_conv2d_input_grad_of_groups(groups, stride):
    _check(*_case((7, 9), (3, 3), stride, (1, 1), groups=groups, channels=(32, 64)))


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)], ids=str)
def test_conv2d_input_grad_depthwise(stride):
    _check(*_case((9, 8), (3, 5), stride, (1, 2), groups=37, channels=(37, 37)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv2d_input_grad_of_layouts(layout):
    grad, input, weight, options = _case((11, 10), (3, 3), (2, 2), (1, 1), channels=(17, 33))
    _check(in_layout(grad, layout), in_layout(input, layout), in_layout(weight, layout), options)


@pytest.mark.parametrize("padding", [0, 1, 2], ids="padding{}".format)
def test_conv2d_input_grad_of_tiles(padding):
    """Large enough for Winograd's algorithm, whose tiles reach over the end."""
    _check(*_case((29, 27), (3, 3), (1, 1), (padding, padding), channels=(64, 48)), relative=5e-6)


def test_conv2d_input_grad_does_not_depend_on_threads():
    cases = [_case((29, 27), (3, 3), (1, 1), (1, 1), channels=(64, 48))]
    cases.append(_case((30, 31), (3, 3), (2, 2), (1, 1), channels=(64, 48)))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([torch.ops.cnnfast.conv2d_input_grad(*case[:3], **case[3]) for case in cases])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_conv2d_input_grad_of_no_images():
    grad, input, weight, options = _case((9, 9), (3, 3), (2, 2), (1, 1))
    found = torch.ops.cnnfast.conv2d_input_grad(grad[:0], input[:0], weight, **options)
    assert found.shape == (0, 16, 9, 9)


def test_conv2d_input_grad_passes_non_finite_values_on():
    grad, input, weight, options = _case((9, 9), (3, 3), (2, 2), (1, 1))
    grad[1, 3, 2, 2] = float("nan")
    found = torch.ops.cnnfast.conv2d_input_grad(grad, input, weight, **options)
    touched = found[1].isnan().all(0)
    assert touched[3:6, 3:6].all() and touched.sum() == 9 and found[0].isfinite().all()


@pytest.mark.parametrize(
    ("grad", "match"),
    [
        (
            torch.randn(2, 5, 4, 3),
            r"grad_output has shape \[2, 5, 4, 3\], but the output .* has \[2, 5, 4, 4",
        ),
        (torch.randn(2, 5, 4, 4).double(), "grad_output"),
    ],
    ids=["shape", "dtype"],
)
def test_conv2d_input_grad_bad_arguments(grad, match):
    with pytest.raises(RuntimeError, match=match):
        torch.ops.cnnfast.conv2d_input_grad(grad, torch.randn(2, 3, 6, 6), torch.randn(5, 3, 3, 3))
