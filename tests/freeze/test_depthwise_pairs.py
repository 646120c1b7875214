"""Depthwise convolutions of bfloat16 values by products of pairs, two rows of a channel at a time; and
convolutions in groups of 4 and 8 channels."""

import copy
import re

import pytest
import torch
from torch import nn

import cnnfast
from cnnfast import _ext

from .support import assert_independent_of_threads, needs_extension, steps_of, truth

pytestmark = [
    needs_extension,
    pytest.mark.skipif(
        _ext.active_isa() not in ("avx512_bf16", "amx"),
        reason="needs vectors that multiply pairs of bfloat16",
    ),
]


# With tiles groups of 8 channels are theirs.
GROUPS = [4, 8] if _ext.active_isa() == "avx512_bf16" else [4]


def depthwise(channels, kernel=3, stride=1, padding=None, bias=True, group=1):
    """`group`: channels of a group."""
    padding = kernel // 2 if padding is None else padding
    conv = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels // group, bias=bias)
    with torch.no_grad():
        conv.weight.copy_(conv.weight.bfloat16())
    return conv


def images(*shape, seed=0):
    torch.manual_seed(seed)
    return torch.randn(*shape).bfloat16().float()


def frozen(model, x):
    result = cnnfast.freeze(model.eval(), x, dtype=torch.bfloat16, strict=True)
    assert re.search(r"(depthwise|groups).*, pairs of bfloat16", steps_of(result, x)), steps_of(result, x)
    return result


def assert_rounded_once(got, wanted, units=0.5001):
    """`units`: of the last place of bfloat16."""
    step = 2.0 ** (wanted.abs().clamp_min(1e-30).log2().floor() - 7)
    assert ((got.double() - wanted).abs() <= units * step + 1e-6).all()


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1)])
@pytest.mark.parametrize("channels", [8, 32, 40, 96, 131])
@pytest.mark.parametrize("size", [(1, 7, 7), (3, 8, 13), (2, 31, 10)])
def test_nearest_bfloat16_in_every_place(kernel, stride, channels, size):
    images_, height, width = size
    x = images(images_, channels, height, width)
    model = depthwise(channels, kernel, stride)
    network = frozen(model, x)
    assert_rounded_once(network(x), truth(model, x))
    assert_independent_of_threads(network, x)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [16, 24, 40, 104])
@pytest.mark.parametrize("size", [(1, 7, 7), (3, 8, 13), (2, 31, 10)])
def test_nearest_bfloat16_of_groups(group, stride, channels, size):
    images_, height, width = size
    x = images(images_, channels, height, width)
    model = depthwise(channels, 3, stride, group=group)
    network = frozen(model, x)
    assert_rounded_once(network(x), truth(model, x))
    assert_independent_of_threads(network, x)


@pytest.mark.parametrize("group", [1, *GROUPS])
@pytest.mark.parametrize("padding", [0, 1, (0, 2), (3, 0)])
def test_any_padding(padding, group):
    x, model = images(2, 24, 9, 8), depthwise(24, padding=padding, bias=False, group=group)
    assert_rounded_once(frozen(model, x)(x), truth(model, x))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "group"), [(3, 1), (5, 1), *((3, group) for group in GROUPS)])
def test_nan_and_infinity_stay_in_their_windows(kernel, group, stride):
    """A row that one of two outputs needs alone meets no weight of the other, not even zero."""
    model = depthwise(40, kernel, stride, group=group)
    x = images(2, 40, 13, 12)
    for place, value in (
        ((0, 3, 0, 0), float("nan")),
        ((0, 7, 6, 5), float("inf")),
        ((1, 39, 12, 11), -float("inf")),
    ):
        x[place] = value
    got, wanted = frozen(model, x)(x), model(x)
    assert torch.equal(got.isnan(), wanted.isnan()) and torch.equal(got.isinf(), wanted.isinf())


class Block(nn.Module):
    """In a slice of a longer value, with a residual and an activation."""

    def __init__(self, activation, group):
        super().__init__()
        self.first, self.conv, self.activation = nn.Conv2d(3, 72, 1), depthwise(24, group=group), activation

    def forward(self, x):
        x = self.first(x)
        part = x[:, 24:48]
        return torch.cat([x, self.activation(self.conv(part) + part)], 1)


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "silu": nn.SiLU(),
    "sigmoid": nn.Sigmoid(),
    "hardswish": nn.Hardswish(),
    "gelu": nn.GELU(),
}


@pytest.mark.parametrize("group", [1, *GROUPS])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slices_residuals_and_activations(activation, group):
    x, model = images(2, 3, 19, 17), Block(ACTIVATIONS[activation], group).eval()
    with torch.no_grad():
        model.first.weight.copy_(model.first.weight.bfloat16())
    network = frozen(model, x)
    between = copy.deepcopy(model)
    between.first.register_forward_hook(lambda *a: a[-1].float().bfloat16().double())
    got, wanted = network(x), truth(between, x)
    assert_rounded_once(got[:, 72:], wanted[:, 72:], 1.02)  # of what was rounded between the layers
    assert_independent_of_threads(network, x)


@pytest.mark.parametrize("group", [1, *GROUPS])
def test_few_rows_are_shared_by_channels(group):
    x, model = images(1, 960, 7, 7), depthwise(960, group=group)
    network = frozen(model, x)
    assert_rounded_once(network(x), truth(model, x))
    assert_independent_of_threads(network, x)
