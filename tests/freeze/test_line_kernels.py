"""Kernels of one row or one column in frozen networks: Winograd's algorithm from one side alone."""

import re

import pytest
import torch
from torch import nn

import cnnfast

from .support import (
    assert_independent_of_threads,
    needs_extension,
    steps_of,
    takes_fixed_point,
    takes_pairs,
    truth,
)

pytestmark = needs_extension

FIXED = takes_fixed_point() and not takes_pairs()
# Of the largest value: float32's rounding errors, and root mean square behind one rounding to bfloat16.
FLOAT32, BFLOAT16 = 1e-5, 2.8e-3

# size of the kernel, in, out, groups, lines, length, batch
SIZES = {
    "three": (3, 64, 64, 1, 9, 24, 2),
    "three over the end": (3, 48, 40, 1, 8, 19, 3),
    "five": (5, 64, 96, 1, 7, 25, 2),
    "seven": (7, 128, 192, 1, 17, 17, 1),
    "seven short": (7, 96, 64, 1, 16, 5, 3),
    "seven odd channels": (7, 67, 45, 1, 11, 21, 2),
    "seven in groups": (7, 128, 160, 2, 9, 17, 2),
    "nine": (9, 64, 64, 1, 6, 30, 2),
    "one line": (7, 64, 64, 1, 1, 150, 2),
    "many channels": (7, 160, 320, 1, 8, 8, 4),
}
CASES = pytest.mark.parametrize("case", SIZES.values(), ids=SIZES)
SIDES = pytest.mark.parametrize("side", ["row", "column"])


class Line(nn.Module):
    """A convolution along one side, with what may stand around it."""

    def __init__(self, side, size, channels, out, groups=1, padding=None, residual=False, norm=False):
        super().__init__()
        padding = size // 2 if padding is None else padding
        kernel, pad = ((1, size), (0, padding)) if side == "row" else ((size, 1), (padding, 0))
        self.first = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels) if norm else None
        self.conv = nn.Conv2d(channels, out, kernel, padding=pad, groups=groups)
        self.residual = residual
        if norm:
            for values in (self.norm.running_mean, self.norm.weight.data, self.norm.bias.data):
                values.uniform_(0.5, 1.5)

    def forward(self, x):
        x = self.first(x)
        y = x if self.norm is None else torch.relu(self.norm(x))
        y = self.conv(y)
        return torch.relu(y + x if self.residual else y)


def images(side, batch, channels, lines, length):
    """Values that bfloat16 holds."""
    shape = (lines, length) if side == "row" else (length, lines)
    return torch.randn(batch, channels, *shape).relu().bfloat16().float()


def made(side, case, **settings):
    size, channels, out, groups, lines, length, batch = case
    torch.manual_seed(0)
    model = Line(side, size, channels, out, groups, **settings).eval()
    return model, images(side, batch, channels, lines, length)


def largest_error(actual, wanted):
    return ((actual.double() - wanted).abs().max() / wanted.abs().max()).item()


def mean_error(actual, wanted):
    return ((actual.double() - wanted).square().mean() / wanted.square().mean()).sqrt().item()


def lines_in(frozen, x):
    """The steps that run by Winograd's algorithm on lines."""
    return [step for step in steps_of(frozen, x).splitlines() if "winograd lines of" in step]


@CASES
@SIDES
def test_values(case, side):
    model, x = made(side, case)
    frozen, wanted = cnnfast.freeze(model, x), truth(model, x)
    assert lines_in(frozen, x)
    assert largest_error(frozen(x), wanted) < FLOAT32
    assert_independent_of_threads(frozen, x)


@CASES
@SIDES
def test_values_in_bfloat16(case, side):
    model, x = made(side, case)
    frozen, wanted = cnnfast.freeze(model, x, dtype=torch.bfloat16), truth(model, x)
    # the 1x1 layer in front rounds, and so does the result
    assert mean_error(frozen(x), wanted) < 1.5 * BFLOAT16
    assert_independent_of_threads(frozen, x)


@pytest.mark.skipif(not FIXED, reason="needs AVX512-VNNI, and no tiles of AMX")
@pytest.mark.parametrize("name", ["three", "five", "seven"])
@SIDES
def test_bfloat16_takes_whole_numbers_where_they_pay(name, side):
    model, x = made(side, SIZES[name])
    steps = lines_in(cnnfast.freeze(model, x, dtype=torch.bfloat16), x)
    assert steps and all("in 16-bit fixed point" in step for step in steps)


@pytest.mark.parametrize(
    "settings", [{"residual": True}, {"norm": True}, {"padding": 0}, {"padding": 5}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@SIDES
def test_what_stands_around_it(settings, dtype, side):
    """Padding is zero behind a norm, not in front of it."""
    model, x = made(side, (7, 64, 64, 1, 12, 22, 2), **settings)
    frozen, wanted = cnnfast.freeze(model, x, dtype=dtype), truth(model, x)
    if dtype == torch.float32:
        assert lines_in(frozen, x)
        assert largest_error(frozen(x), wanted) < FLOAT32
    else:
        assert mean_error(frozen(x), wanted) < 2 * BFLOAT16
    assert_independent_of_threads(frozen, x)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@SIDES
def test_pooling_behind_it(pool, dtype, side):
    torch.manual_seed(0)
    model = nn.Sequential(Line(side, 5, 32, 64), pool).eval()
    x = images(side, 2, 32, 46, 58)
    frozen, wanted = cnnfast.freeze(model, x, dtype=dtype), truth(model, x)
    if dtype == torch.float32:
        assert largest_error(frozen(x), wanted) < FLOAT32
    else:
        assert mean_error(frozen(x), wanted) < 2 * BFLOAT16
    assert_independent_of_threads(frozen, x)


@pytest.mark.parametrize("largest_tile", [0, 2, 4, 6])
def test_a_bound_on_tiles_bounds_points(largest_tile):
    """Lines have two points more than tiles for the same errors."""
    model, x = made("row", SIZES["seven"])
    frozen = cnnfast.freeze(model, x).with_conv_attributes(largest_tile=largest_tile)
    found = [re.search(r"winograd lines of (\d+)", step) for step in lines_in(frozen, x)]
    tiles = [int(match.group(1)) for match in found]
    assert tiles == {0: [], 2: [], 4: [2], 6: [4]}[largest_tile]
    assert largest_error(frozen(x), truth(model, x)) < FLOAT32


@pytest.mark.parametrize("layer", [
    nn.Conv2d(64, 64, (1, 7), (1, 2), (0, 3)), nn.Conv2d(64, 64, (7, 1), 1, (6, 0), (2, 1)),
    nn.Conv2d(64, 64, (3, 5), 1, (1, 2)), nn.Conv2d(64, 64, (1, 7), 1, (0, 3), groups=64),
], ids=["stride", "dilation", "rectangle", "depthwise"])  # fmt: skip
def test_other_kernels_are_no_lines(layer):
    torch.manual_seed(0)
    x = torch.randn(2, 64, 18, 20)
    frozen = cnnfast.freeze(layer.eval(), x)
    assert not lines_in(frozen, x)
    assert largest_error(frozen(x), truth(layer, x)) < FLOAT32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@SIDES
def test_what_is_not_finite_stays_in_its_line(value, side):
    torch.manual_seed(0)
    model = Line(side, 7, 64, 64).eval()
    x = images(side, 2, 64, 12, 30)
    frozen = cnnfast.freeze(model, x)
    clean = frozen(x)
    x[(0, 5, 4, 15) if side == "row" else (0, 5, 15, 4)] = value
    dirty = frozen(x)
    if side == "column":
        clean, dirty = clean.mT, dirty.mT
    assert not dirty[0, :, 4, 12:19].isfinite().any()
    others = torch.arange(12) != 4
    assert torch.equal(dirty[0, :, others], clean[0, :, others]) and torch.equal(dirty[1], clean[1])


@SIDES
def test_images_do_not_depend_on_each_other(side):
    model, x = made(side, SIZES["seven short"])
    for dtype in (torch.float32, torch.bfloat16):
        frozen = cnnfast.freeze(model, x, dtype=dtype)
        assert torch.equal(frozen(x.flip(0)), frozen(x).flip(0))


@SIDES
def test_other_sizes_than_the_example(side):
    model, x = made(side, SIZES["seven"])
    frozen = cnnfast.freeze(model, x)
    for lines, length in ((3, 4), (1, 1), (30, 41)):
        y = images(side, 2, 128, lines, length)
        assert largest_error(frozen(y), truth(model, y)) < FLOAT32
