"""Images of planes, one channel behind the other, become pixels of adjacent channels in front of a plan."""

import pytest
import torch
from torch import nn

import cnnfast

DTYPES = [torch.float32, torch.bfloat16]


def first_values(channels, x, dtype):
    """What a plan reads: a convolution that hands every channel on."""
    network = nn.Conv2d(channels, channels, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(channels)[:, :, None, None])
    return cnnfast.freeze(network.eval(), x, dtype=dtype, strict=True)(x)


def images(channels, height, width):
    """All values unlike, and exact in bfloat16."""
    count = 2 * channels * height * width
    return (torch.randperm(count) + 1).bfloat16().float().reshape(2, channels, height, width)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 16, 19, 33])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 15), (4, 33), (7, 64)], ids=str)
def test_every_value_arrives_at_its_place(channels, size, dtype):
    x = images(channels, *size)
    assert torch.equal(first_values(channels, x, dtype), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [3, 16])
def test_planes_with_gaps_and_other_layouts(channels, dtype):
    x = images(channels, 9, 21)
    gaps = torch.full((4, 2 * channels, 11, 40), float("nan"))
    gaps[::2, ::2, 1:10, 5:26] = x
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    last = x.contiguous(memory_format=torch.channels_last)
    for given in (gaps[::2, ::2, 1:10, 5:26], turned, last):
        assert torch.equal(given, x) and torch.equal(first_values(channels, given, dtype), x)
    one = x[:, :1]
    repeated = one.expand(2, channels, 9, 21)
    assert torch.equal(first_values(channels, repeated, dtype), one.repeat(1, channels, 1, 1))


@pytest.mark.parametrize("channels", [2, 3, 4, 16])
def test_values_are_rounded_once_and_nothing_is_lost(channels):
    x = torch.randn(2, channels, 6, 37)
    x[0, 1, 2, 3], x[1, 0, 5, 36], x[1, 1, 0, 0] = float("nan"), float("inf"), -0.0
    found = first_values(channels, x, torch.bfloat16)
    clean = torch.isfinite(x).all(dim=1, keepdim=True).expand_as(x)
    assert torch.equal(found[clean], x.bfloat16().float()[clean])
    assert torch.isnan(found[0, 1, 2, 3]) and not torch.isfinite(found[1, 0, 5, 36])
