"""conv2d on sizes that Winograd's algorithm serves, forward and backward, against float64."""

import pytest
import torch
import torch.nn.functional as F

from cnnfast import ops

from .support import LAYOUTS, in_layout, needs_extension

pytestmark = needs_extension

# in, out, kernel, padding, groups, height, width, batch
GEOMETRIES = {
    "three": (64, 64, 3, 1, 1, 28, 28, 2),
    "three_odd": (35, 67, 3, 1, 1, 29, 27, 2),
    "three_unpadded": (64, 48, 3, 0, 1, 25, 30, 2),
    "three_small_images": (160, 128, 3, 1, 1, 6, 6, 9),
    "five": (48, 64, 5, 2, 1, 19, 23, 2),
    "five_more_padding": (32, 64, 5, 4, 1, 19, 21, 2),
    "five_evenly": (64, 96, 5, 2, 1, 18, 24, 3),
    "grouped": (96, 96, 3, 1, 2, 27, 26, 2),
    "row": (128, 96, (1, 7), (0, 3), 1, 17, 18, 2),
    "column": (128, 96, (7, 1), (3, 0), 1, 18, 17, 2),
    "short_row": (64, 64, (1, 3), (0, 1), 1, 21, 40, 2),
    "long_column": (64, 67, (5, 1), (2, 0), 1, 30, 19, 2),
    "row_with_more_padding": (96, 64, (1, 7), (2, 6), 1, 13, 20, 2),
    "grouped_column": (128, 128, (7, 1), (0, 0), 2, 23, 19, 2),
}
CASES = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)


def _tensors(geometry):
    inputs, outputs, kernel, padding, groups, height, width, batch = geometry
    kernel, padding = ((size, size) if isinstance(size, int) else size for size in (kernel, padding))
    torch.manual_seed(1)
    # Outputs of about 1, so that a sigmoid behind them neither saturates nor magnifies their errors.
    weight = torch.randn(outputs, inputs // groups, *kernel)
    weight /= weight[0].numel() ** 0.5
    return torch.randn(batch, inputs, height, width), weight, torch.randn(outputs), padding, groups


# Of the largest value: tiles of six points, and those of eight that 5x5 kernels take.
SIX_POINTS, EIGHT_POINTS = 5e-6, 1e-5


def _near(actual, wanted, relative=SIX_POINTS):
    assert (actual.double() - wanted).abs().max() <= relative * wanted.abs().max()


@CASES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv2d_winograd_values(geometry, layout):
    x, weight, bias, padding, groups = _tensors(geometry)
    wanted = F.conv2d(x.double(), weight.double(), bias.double(), 1, padding, 1, groups)
    residual = torch.randn(wanted.shape)
    actual = ops.conv2d(
        in_layout(x, layout), weight, bias, None, residual, (1, 1), padding, (1, 1), groups, "relu"
    )
    _near(actual, torch.relu(wanted + residual), EIGHT_POINTS if max(weight.shape[2:]) >= 5 else SIX_POINTS)


@CASES
def test_conv2d_winograd_gradients(geometry):
    x, weight, bias, padding, groups = _tensors(geometry)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    output = ops.conv2d(x, weight, bias, None, None, (1, 1), padding, (1, 1), groups, "sigmoid")
    cotangent = torch.randn_like(output)
    actual = torch.autograd.grad(output, leaves, cotangent)
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    wanted = torch.sigmoid(F.conv2d(doubles[0], doubles[1], doubles[2], 1, padding, 1, groups))
    for a, w in zip(actual, torch.autograd.grad(wanted, doubles, cotangent.double()), strict=True):
        _near(a, w, 2e-5)


def _near_but_for_rounding(actual, wanted):
    """bfloat16 results: rounded to nearest, with the errors of its larger tiles before."""
    assert actual.dtype == torch.bfloat16
    allowed = 2**-8 * wanted.abs() + 1e-4 * wanted.abs().max()
    assert ((actual.double() - wanted).abs() <= allowed).all()


@CASES
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_conv2d_winograd_bfloat16(geometry, layout):
    """Values and gradients: products of pairs, or Winograd's with tiles that float32 does not take."""
    x, weight, bias, padding, groups = (t.bfloat16() if torch.is_tensor(t) else t for t in _tensors(geometry))
    leaves = [in_layout(x, layout).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    actual = ops.conv2d(*leaves, None, None, (1, 1), padding, (1, 1), groups)
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    wanted = F.conv2d(*doubles, 1, padding, 1, groups)
    _near_but_for_rounding(actual, wanted)
    cotangent = torch.randn(wanted.shape).bfloat16()
    gradients = torch.autograd.grad(wanted, doubles, cotangent.double())
    for a, w in zip(torch.autograd.grad(actual, leaves, cotangent), gradients, strict=True):
        _near_but_for_rounding(a, w)


def test_conv2d_winograd_follows_a_changed_weight():
    x, weight, _, padding, _ = _tensors(GEOMETRIES["three"])
    for _ in range(3):
        _near(ops.conv2d(x, weight, padding=(1, 1)), F.conv2d(x.double(), weight.double(), padding=padding))
        weight.add_(torch.randn_like(weight))


def test_conv2d_winograd_of_another_size_packs_again():
    weight = torch.randn(64, 64, 3, 3)
    for size in (4, 28, 5, 12):
        x = torch.randn(2, 64, size, size)
        _near(ops.conv2d(x, weight, padding=(1, 1)), F.conv2d(x.double(), weight.double(), padding=1))


def test_conv2d_winograd_keeps_what_is_not_finite_within_its_tiles():
    """The largest tile of the operator is 4 x 4: a value reaches the tiles whose 6 x 6 windows hold it."""
    x, weight, _, _, _ = _tensors(GEOMETRIES["three"])
    clean = ops.conv2d(x, weight, padding=(1, 1))
    x[0, 5, 14, 13] = float("nan")
    dirty = ops.conv2d(x, weight, padding=(1, 1))
    assert dirty[0, :, 13:16, 12:15].isnan().all()
    far = torch.ones(28, 28, dtype=torch.bool)
    far[14 - 5 : 14 + 6, 13 - 5 : 13 + 6] = False
    assert torch.equal(dirty[0][:, far], clean[0][:, far]) and torch.equal(dirty[1], clean[1])
