"""Winograd convolutions of frozen networks: values, when they are chosen, tiles over edges, NaN."""

import re

import pytest
import torch
from torch import nn

import cnnfast

from .support import needs_extension, truth

pytestmark = needs_extension

# in, out, kernel, padding, groups, height, width, batch
GEOMETRIES = {
    "vgg": (64, 64, 3, 1, 1, 28, 28, 2),
    "f6_exact": (32, 64, 3, 1, 1, 12, 24, 2),
    "f6_overreach": (48, 40, 3, 1, 1, 13, 25, 1),
    "late": (128, 256, 3, 1, 1, 3, 3, 16),
    "six_by_six": (96, 128, 3, 1, 1, 6, 6, 3),
    "no_padding": (32, 32, 3, 0, 1, 14, 17, 2),
    "more_padding": (16, 32, 3, 2, 1, 11, 10, 2),
    "five": (48, 64, 5, 2, 1, 26, 26, 1),
    "five_odd": (17, 33, 5, 2, 1, 9, 11, 3),
    "odd_channels": (19, 21, 3, 1, 1, 15, 14, 2),
    "grouped": (64, 96, 3, 1, 2, 13, 13, 2),
    "grouped_five": (96, 128, 5, 2, 2, 27, 27, 1),
    "many_channels": (272, 80, 3, 1, 1, 9, 9, 1),
    "one_tile": (64, 64, 3, 1, 1, 2, 2, 1),
}
CASES = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)


class Block(nn.Module):
    """A convolution with everything that can follow it."""

    def __init__(self, inputs, outputs, kernel, padding, groups):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, kernel, padding=padding, groups=groups)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, groups=groups)
        self.crop = kernel - 1 - 2 * padding

    def forward(self, x):
        if self.crop:
            return torch.relu(self.first(x))
        return torch.relu(self.first(x) + self.shortcut(x))


def _case(geometry):
    inputs, outputs, kernel, padding, groups, height, width, batch = geometry
    torch.manual_seed(0)
    return Block(inputs, outputs, kernel, padding, groups), torch.randn(batch, inputs, height, width)


def _described(frozen, x):
    return torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan)


def _error(actual, wanted):
    return ((actual.double() - wanted).abs().max() / wanted.abs().max()).item()


@CASES
def test_winograd_values(geometry):
    model, x = _case(geometry)
    wanted = truth(model, x)
    assert _error(cnnfast.freeze(model, x)(x), wanted) < 3e-5
    assert _error(cnnfast.freeze(model, x, winograd=False)(x), wanted) < 2e-6


# Groups, kernel, padding.
BEHIND_NORMS = [
    (1, 3, 1),
    (2, 3, 1),
    (4, 3, 1),
    (2, 3, 0),
    (2, 5, 2),
    (2, (1, 7), (2, 1)),
    (4, (5, 1), (2, 0)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", BEHIND_NORMS, ids=str)
def test_winograd_behind_a_norm_takes_every_group_its_own(case, dtype):
    """Norm and activation are applied on the way in: scale and shift of the group's channels."""
    groups, kernel, padding = case
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(64)
    norm.running_mean.normal_(), norm.running_var.uniform_(0.2, 3)
    nn.init.uniform_(norm.weight, -2, 2), nn.init.normal_(norm.bias)
    model = nn.Sequential(norm, nn.ReLU(), nn.Conv2d(64, 96, kernel, padding=padding, groups=groups)).eval()
    x = torch.randn(2, 64, 26, 27)
    frozen = cnnfast.freeze(model, x, dtype=dtype)
    if dtype == torch.float32:
        assert re.search("affine, conv .* winograd", _described(frozen, x))
    assert _error(frozen(x), truth(model, x)) < (3e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("name", ["vgg", "f6_overreach", "late", "five", "grouped_five"])
def test_winograd_is_used_where_it_pays(name):
    model, x = _case(GEOMETRIES[name])
    assert "winograd" in _described(cnnfast.freeze(model, x), x)
    assert "winograd" not in _described(cnnfast.freeze(model, x, winograd=False), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_winograd_is_not_used_for_strides_unequal_dilations_and_first_layers(channels):
    for conv in (nn.Conv2d(64, 64, 3, 2, 1), nn.Conv2d(64, 64, 3, 1, 2, (2, 1)), nn.Conv2d(channels, 8, 3)):
        x = torch.randn(2, conv.in_channels, 24, 24)
        assert "winograd" not in _described(cnnfast.freeze(conv, x), x)


@CASES
def test_winograd_does_not_depend_on_threads_or_the_run(geometry):
    model, x = _case(geometry)
    frozen = cnnfast.freeze(model, x)
    threads = torch.get_num_threads()
    first = frozen(x)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(frozen(x), first)
    finally:
        torch.set_num_threads(threads)


def test_winograd_strips_hold_whole_tiles():
    """With fewer rows than a tile has, most of every tile would be computed for nothing."""
    model, x = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.MaxPool2d(2)), torch.randn(1, 64, 112, 112)
    frozen = cnnfast.freeze(model.eval(), x)
    found = re.search(r"winograd tiles of (\d+),.* with max pool .*, (\d+) strips", _described(frozen, x))
    tile, strips = map(int, found.groups())
    assert 2 * -(-56 // strips) >= tile
    assert _error(frozen(x), truth(model, x)) < 3e-5


def test_winograd_images_do_not_depend_on_their_neighbours():
    model, x = _case(GEOMETRIES["vgg"])
    frozen = cnnfast.freeze(model, x)
    assert torch.equal(frozen(x)[1:], frozen(torch.cat((torch.randn_like(x[:1]), x[1:])))[1:])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_winograd_keeps_what_is_not_finite_within_its_tiles(value):
    """The largest tile is 6 x 6: a value reaches the tiles whose 8 x 8 input windows hold it."""
    conv = nn.Conv2d(64, 64, 3, padding=1)
    x = torch.randn(1, 64, 40, 40)
    frozen = cnnfast.freeze(conv, x)
    clean = frozen(x)
    x[0, 5, 20, 21] = value
    dirty = frozen(x)
    assert not dirty[0, :, 19:22, 20:23].isfinite().any()
    far = torch.ones(40, 40, dtype=torch.bool)
    far[20 - 7 : 20 + 8, 21 - 7 : 21 + 8] = False
    assert torch.equal(dirty[0][:, far], clean[0][:, far])


def test_winograd_of_a_part_of_a_concatenation():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(32, 40, 5, padding=2)
            self.last = nn.Conv2d(88, 32, 3, padding=1)

        def forward(self, x):
            return self.last(torch.cat((torch.relu(self.a(x)), self.b(x)), 1))

    model, x = Branches(), torch.randn(2, 32, 13, 19)
    frozen = cnnfast.freeze(model, x)
    assert _described(frozen, x).count("winograd") == 3
    assert _error(frozen(x), truth(model, x)) < 3e-5
    for size in ((5, 5), (31, 8)):
        y = torch.randn(3, 32, *size)
        assert _error(frozen(y), truth(model, y)) < 3e-5
