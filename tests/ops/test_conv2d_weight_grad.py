"""conv2d_weight_grad, direct and by Winograd's algorithm, against float64."""

import pytest
import torch

from .geometries import GEOMETRIES
from .support import LAYOUTS, assert_near, in_layout, needs_extension, poison

pytestmark = needs_extension

# Shapes that Winograd's algorithm serves: in, out, height, width, padding, batch.
TILED = {
    "even": (64, 64, 16, 16, 1, 4),
    "odd": (35, 67, 29, 27, 1, 2),
    "unpadded": (48, 33, 25, 30, 0, 2),
    "much_padding": (32, 40, 22, 23, 2, 3),
    "many_tiles": (16, 16, 56, 56, 1, 6),
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
    inputs, outputs, height, width, padding, batch = TILED[name]
    torch.manual_seed(2)
    input, weight = torch.randn(batch, inputs, height, width), torch.randn(outputs, inputs, 3, 3)
    grad = torch.randn(batch, outputs, height + 2 * padding - 2, width + 2 * padding - 2)
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
    _check(in_layout(grad, layout), in_layout(input, layout), in_layout(weight, layout), options, 5e-6)


def test_conv2d_weight_grad_does_not_depend_on_threads():
    before = torch.get_num_threads()
    wide = (torch.randn(2, 40, 9, 11), torch.randn(2, 24, 9, 11), torch.randn(40, 24, 1, 1))
    pointwise = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            tiled = torch.ops.cnnfast.conv2d_weight_grad(*_tiled("odd")[:3], **_tiled("odd")[3])
            results.append((tiled, torch.ops.cnnfast.conv2d_weight_grad(*wide, **pointwise)))
    finally:
        torch.set_num_threads(before)
    for tiled, direct in results[1:]:
        assert torch.equal(tiled, results[0][0])
        assert torch.equal(direct, results[0][1])


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
