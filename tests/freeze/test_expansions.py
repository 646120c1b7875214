"""A convolution and the depthwise one behind it run strip by strip of rows, panel by panel of channels."""

import copy

import pytest
import torch
from torch import nn

import cnnfast

from .support import assert_independent_of_threads, assert_near, needs_extension, steps_of, truth

pytestmark = needs_extension


def block(channels, width, kernel, stride=1, padding=None, dilation=1, act=nn.ReLU6, first=1):
    padding = kernel // 2 * dilation if padding is None else padding
    depthwise = nn.Conv2d(width, width, kernel, stride, padding, dilation, groups=width, bias=False)
    entry = nn.Conv2d(channels, width, first, 2 if first > 1 else 1, first // 2, bias=False)
    model = nn.Sequential(entry, nn.BatchNorm2d(width), act(), depthwise, nn.BatchNorm2d(width), act())
    for norm in (model[1], model[4]):
        nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
    return model.eval()


def check(model, x):
    frozen = cnnfast.freeze(model, x)
    text = steps_of(frozen, x)
    assert ", then conv" in text and text.count("conv") == 2, text
    assert_near(frozen(x), truth(model, x))
    assert_independent_of_threads(frozen, x)
    return frozen


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(
    "form",
    [
        {"kernel": 3},
        {"kernel": 3, "stride": 2},
        {"kernel": 5, "stride": 2, "act": nn.Hardswish},
        {"kernel": 5, "act": nn.SiLU},
        {"kernel": 7},
        {"kernel": 3, "dilation": 2},
        {"kernel": 3, "padding": 0},
        {"kernel": 3, "padding": 1, "dilation": 3},
        {"kernel": 5, "padding": 4, "stride": 3},
        {"kernel": 3, "first": 3},
    ],
    ids=lambda form: "_".join(f"{k}{getattr(v, '__name__', v)}" for k, v in form.items()),
)
def test_values(form, images):
    check(block(9, 70, **form), torch.randn(images, 9, 21, 17))


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (9, 2), (7, 7)])
def test_small_images(size):
    check(block(40, 200, 5), torch.randn(2, 40, *size))


def test_wide_rows_take_several_strips():
    model, x = block(5, 96, 3, 2), torch.randn(2, 5, 40, 300)
    frozen = check(model, x)
    assert ", 1 strips" not in steps_of(frozen, x)
    x[1, 2, 33, 250] = float("nan")
    assert torch.equal(torch.isnan(frozen(x)), torch.isnan(truth(model, x)))


def test_other_sizes_of_one_network():
    model = block(12, 48, 3)
    frozen = cnnfast.freeze(model, torch.randn(1, 12, 14, 14))
    for size in ((5, 14, 14), (1, 33, 8), (0, 12, 12)):
        x = torch.randn(size[0], 12, *size[1:])
        assert_near(frozen(x), truth(model, x))


class Residual(nn.Module):
    def __init__(self, channels, width, kernel, stride, out, act=nn.ReLU6):
        super().__init__()
        self.block = block(channels, width, kernel, stride, act=act)
        self.project, self.adds = nn.Conv2d(width, out, 1), stride == 1 and channels == out

    def forward(self, x):
        y = self.project(self.block(x))
        return x + y if self.adds else y


@pytest.mark.parametrize(
    "images, size, form",
    [
        (16, (30, 31), (20, 120, 3, 1, 20)),
        (1, (90, 60), (9, 72, 3, 1, 9)),
        (3, (61, 47), (12, 100, 5, 2, 17, nn.Hardswish)),
        (40, (7, 7), (24, 144, 3, 1, 24, nn.SiLU)),
    ],
)
def test_a_whole_inverted_residual_block(images, size, form):
    """Only where what lies between leaves the second-level cache."""
    model, x = Residual(*form).eval(), torch.randn(images, form[0], *size)
    frozen = cnnfast.freeze(model, x)
    assert steps_of(frozen, x).count(", then conv") == 2
    assert_near(frozen(x), truth(model, x))
    assert_independent_of_threads(frozen, x)
    x[0, 5, -1, 3] = float("nan")
    assert torch.equal(torch.isnan(frozen(x)), torch.isnan(truth(model, x)))
    few = x[1:2] if images > 1 else x[:, :, :9]
    assert_near(frozen(few), truth(model, few))


def test_blocks_without_expansion_in_a_row():
    """Convolutions behind a depthwise one that stand in front of another, as in MobileNet v1."""
    layers = []
    for _ in range(3):
        layers += [nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.ReLU(), nn.Conv2d(24, 24, 1), nn.ReLU()]
    model, x = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)).eval(), torch.randn(9, 24, 33, 29)
    frozen = cnnfast.freeze(model, x)
    assert steps_of(frozen, x).count(", then conv") == 3
    assert_near(frozen(x), truth(model, x))
    assert_independent_of_threads(frozen, x)


@pytest.mark.parametrize("images, size", [(1, (7, 7)), (2, (40, 37))])
def test_the_mean_behind_is_summed_by_strips(images, size):
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.gate = block(10, 90, 5, act=nn.SiLU), nn.Conv2d(90, 90, 1)

        def forward(self, x):
            y = self.block(x)
            return y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True))), y.mean((2, 3))

    model, x = Squeezed().eval(), torch.randn(images, 10, *size)
    frozen = cnnfast.freeze(model, x)
    text = torch.ops.cnnfast.describe_plan([x], *plan_of(frozen))
    assert "strips and their sums" in text
    for actual, wanted in zip(frozen(x), copy.deepcopy(model).double()(x.double()), strict=True):
        assert_near(actual, wanted.detach())


def plan_of(frozen):
    (part,) = frozen.plans().values()
    return part.weights, part.plan


@pytest.mark.parametrize("group", [4, 8, 16])
@pytest.mark.parametrize("stride", [1, 2])
def test_groups_of_few_channels(group, stride):
    width = 9 * group if group == 4 else 5 * group
    model = nn.Sequential(
        nn.Conv2d(7, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride, 1, groups=width // group),
        nn.SiLU(),
    ).eval()
    for x in (torch.randn(1, 7, 14, 14), torch.randn(3, 7, 23, 19)):
        frozen = cnnfast.freeze(model, x)
        assert_near(frozen(x), truth(model, x))
        assert_independent_of_threads(frozen, x)


class Branches(nn.Module):
    """A shuffle unit: the block reads a slice and writes another; its first value may be read twice."""

    def __init__(self, twice):
        super().__init__()
        both = block(16, 16, 3, act=nn.ReLU)
        self.first, self.last, self.twice = both[:3], both[3:], twice

    def forward(self, x):
        a, b = x.chunk(2, 1)
        first = self.first(b)
        last = self.last(first)
        return torch.cat([a, last, first] if self.twice else [a, last], 1)


@pytest.mark.parametrize("twice", [False, True])
def test_slices_and_other_readers(twice):
    model, x = Branches(twice).eval(), torch.randn(3, 32, 11, 13)
    frozen = cnnfast.freeze(model, x)
    assert (", then conv" in steps_of(frozen, x)) != twice
    assert_near(frozen(x), truth(model, x))
    assert_independent_of_threads(frozen, x)
