"""conv2d_weight_grad, direct and by Winograd's algorithm, against float64."""

import pytest
import torch

from .geometries import GEOMETRIES
from .support import LAYOUTS, assert_near, in_layout, needs_extension, on_threads, poison

pytestmark = needs_extension

# Shapes that Winograd's algorithm serves: in, out, height, width, padding, batch, kernel.
TILED = {
    "even": (64, 64, 16, 16, 1, 4, 3),
    "odd": (35, 67, 29, 27, 1, 2, 3),
    "unpadded": (48, 33, 25, 30, 0, 2, 3),
    "much_padding": (32, 40, 22, 23, 2, 3, 3),
    "many_tiles": (16, 16, 56, 56, 1, 6, 3),
    "5x5": (64, 64, 26, 26, 2, 4, 5),
    "5x5_odd": (35, 67, 29, 27, 1, 3, 5),
}


def _true_gradient(grad, input, weight, options):
    leaf = weight.double().detach().requires_grad_()
    output = torch.nn.functional.conv2d(input.double(), leaf, None, **options)
    return torch.autograd.grad(output, leaf, grad.double())[0]


def _check(grad, input, weight, options, relative=2e-5):
    truth = _true_gradient(grad, input, weight, options)
    poison(weight.shape)
    found = torch.ops.cnnfast.conv2d_weight_grad(grad, input, weight, **options)
    assert found.stride() == torch.empty_like(weight).stride()
    assert_near(found, truth, relative)
    return found


def _tiled(name):
    inputs, outputs, height, width, padding, batch, kernel = TILED[name]
    torch.manual_seed(2)
    input, weight = torch.randn(batch, inputs, height, width), torch.randn(outputs, inputs, kernel, kernel)
    shrink = kernel - 1 - 2 * padding
    grad = torch.randn(batch, outputs, height - shrink, width - shrink)
    options = {"stride": [1, 1], "padding": [padding] * 2, "dilation": [1, 1], "groups": 1}
    return grad, input, weight, options


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_conv2d_weight_grad(geometry):
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in geometry.options.items()}
    _check(torch.randn(geometry.output_shape()), geometry.input(), geometry.weight(), options)


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv2d_weight_grad_of_tiles(name, layout):
    grad, input, weight, options = _tiled(name)
    relative = 2e-5 if name.startswith("5x5") else 5e-6  # tiles of eight points, higher powers of them
    _check(in_layout(grad, layout), in_layout(input, layout), in_layout(weight, layout), options, relative)


def test_conv2d_weight_grad_does_not_depend_on_threads():
    before = torch.get_num_threads()
    wide = (torch.randn(2, 40, 9, 11), torch.randn(2, 24, 9, 11), torch.randn(40, 24, 1, 1))
    pointwise = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    results = []
    late = _many_channels()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            tiled = torch.ops.cnnfast.conv2d_weight_grad(*_tiled("odd")[:3], **_tiled("odd")[3])
            # One panel's sums at a time: too many for the cache.
            panels = torch.ops.cnnfast.conv2d_weight_grad(*late[:3], **late[3])
            results.append((tiled, torch.ops.cnnfast.conv2d_weight_grad(*wide, **pointwise), panels))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def _many_channels():
    grad, input = torch.randn(8, 144, 3, 3), torch.randn(8, 250, 3, 3)
    options = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    return grad, input, torch.randn(144, 250, 3, 3), options


def test_conv2d_weight_grad_of_many_channels():
    """Sums of all panels together leave the second-level cache: panel by panel."""
    _check(*_many_channels())


@pytest.mark.parametrize("groups", [2, 4])
def test_conv2d_weight_grad_of_groups(groups):
    weight = torch.randn(48, 64 // groups, 3, 3)
    options = {"stride": [2, 1], "padding": [1, 1], "dilation": [1, 1], "groups": groups}
    _check(torch.randn(2, 48, 5, 11), torch.randn(2, 64, 10, 11), weight, options)


def test_conv2d_weight_grad_of_no_images():
    weight = torch.randn(5, 3, 3, 3)
    found = torch.ops.cnnfast.conv2d_weight_grad(torch.randn(0, 5, 4, 4), torch.randn(0, 3, 6, 6), weight)
    assert torch.equal(found, torch.zeros_like(weight))


def test_conv2d_weight_grad_passes_non_finite_values_on():
    grad, input, weight, options = _tiled("even")
    grad[1, 3, 5, 5] = float("nan")
    found = torch.ops.cnnfast.conv2d_weight_grad(grad, input, weight, **options)
    assert found[3].isnan().all()
    assert found[torch.arange(64) != 3].isfinite().all()


@pytest.mark.parametrize(
    ("grad", "match"),
    [
        (
            torch.randn(2, 5, 4, 3),
            r"grad_output has shape \[2, 5, 4, 3\], but the output .* has \[2, 5, 4, 4\]",
        ),
        (torch.randn(2, 5, 4, 4).double(), "grad_output"),
    ],
    ids=["shape", "dtype"],
)
def test_conv2d_weight_grad_bad_arguments(grad, match):
    with pytest.raises(RuntimeError, match=match):
        torch.ops.cnnfast.conv2d_weight_grad(grad, torch.randn(2, 3, 6, 6), torch.randn(5, 3, 3, 3))


# One channel of output for each of input: channels, height, width, kernel, stride, padding, dilation, batch.
DEPTHWISE = {
    "3x3": (40, 9, 11, (3, 3), 1, 1, 1, 3),
    "3x3_stride": (33, 14, 13, (3, 3), 2, 1, 1, 2),
    "5x5_stride": (16, 15, 12, (5, 5), 2, 2, 1, 2),
    "7x7": (150, 8, 9, (7, 7), 1, 3, 1, 2),
    "dilated": (17, 16, 15, (3, 5), 1, (2, 4), 2, 2),
    "row": (9, 6, 20, (1, 11), 1, (0, 5), 1, 2),
    "column": (8, 20, 6, (9, 1), 1, (4, 0), 1, 2),
    "even": (20, 12, 12, (4, 2), 2, 1, 1, 2),
    "larger_than_the_image": (24, 7, 7, (13, 13), 1, 6, 1, 2),
    "unpadded": (12, 10, 10, (3, 3), 1, 0, 1, 1),
    "much_padding": (5, 4, 5, (3, 3), 1, 2, 1, 7),
    "strips": (3, 130, 150, (3, 3), 1, 1, 1, 1),
    "long_rows": (2, 3, 1300, (3, 3), 1, 1, 1, 1),
    "pointwise": (24, 6, 5, (1, 1), 1, 0, 1, 2),
}


def _depthwise(name):
    channels, height, width, kernel, stride, padding, dilation, batch = DEPTHWISE[name]
    padding = [padding] * 2 if isinstance(padding, int) else list(padding)
    torch.manual_seed(3)
    input, weight = torch.randn(batch, channels, height, width), torch.randn(channels, 1, *kernel)
    options = {"stride": [stride] * 2, "padding": padding, "dilation": [dilation] * 2, "groups": channels}
    grad = torch.randn_like(torch.nn.functional.conv2d(input, weight, None, **options))
    return grad, input, weight, options


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", DEPTHWISE)
def test_conv2d_weight_grad_of_depthwise_kernels(name, layout):
    grad, input, weight, options = _depthwise(name)
    if layout != "ambiguous":  # its single input channel has any stride: an equal one is not promised
        weight = in_layout(weight, layout)
    _check(in_layout(grad, layout), in_layout(input, layout), weight, options, 5e-6)


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", DEPTHWISE)
def test_conv2d_weight_grad_of_depthwise_kernels_in_bfloat16(name, parameters):
    grad, input, weight, options = _depthwise(name)
    grad, input, weight = grad.bfloat16(), input.bfloat16(), weight.to(parameters)
    truth = _true_gradient(grad, input, weight, options)
    found = torch.ops.cnnfast.conv2d_weight_grad(grad, input, weight, **options)
    assert found.dtype == parameters
    assert_near(found, truth, 5e-6 if parameters == torch.float32 else 4e-3)


def test_conv2d_weight_grad_of_depthwise_kernels_does_not_depend_on_threads():
    for name in ("3x3", "7x7", "strips"):
        grad, input, weight, options = _depthwise(name)
        found = [
            torch.ops.cnnfast.conv2d_weight_grad(grad, input, weight, **options) for _ in on_threads(1, 2, 3)
        ]
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_conv2d_weight_grad_of_depthwise_kernels_reads_its_own_channels():
    """Not those of other channels, and nothing beside a slice."""
    grad, input, weight, options = _depthwise("3x3")
    truth = _true_gradient(grad, input, weight, options)
    input[:, 7] = float("nan")
    found = torch.ops.cnnfast.conv2d_weight_grad(grad, input, weight, **options)
    assert found[7].isnan().all()
    others = torch.arange(len(weight)) != 7
    assert_near(found[others], truth[others], 5e-6)
