"""Max pooling of bfloat16 values compares them as they are stored: the largest value, exactly."""

import copy

import pytest
import torch
from torch import nn

import cnnfast

from .support import assert_independent_of_threads, needs_extension, steps_of

pytestmark = needs_extension

POOLS = {
    "same": nn.MaxPool2d(3, 1, padding=1),
    "halved": nn.MaxPool2d(3, 2),
    "ceil": nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
    "apart": nn.MaxPool2d(2, 3),
    "oblong": nn.MaxPool2d((2, 5), (1, 2), padding=(1, 2)),
    "dilated": nn.MaxPool2d(2, 1, padding=1, dilation=3),
    "whole": nn.MaxPool2d((11, 9)),
}


@pytest.mark.parametrize("channels", [1, 5, 8, 13, 16, 21, 31, 32, 33, 100])
@pytest.mark.parametrize("pool", POOLS)
def test_bfloat16_max_pool_is_exact(pool, channels):
    """Of odd channel counts, with NaN of both signs, infinities, and windows of nothing but -infinity."""
    model = nn.Sequential(copy.deepcopy(POOLS[pool]))
    x = torch.randn(3, channels, 11, 9).bfloat16().float()
    frozen = cnnfast.freeze(model, x, dtype=torch.bfloat16, strict=True)
    assert torch.equal(frozen(x), model(x))
    x[0, 0, 3, 3], x[1, channels - 1, 5, 5] = float("nan"), -float("nan")
    x[2, channels // 2, 0, 0], x[1, 0] = float("inf"), -float("inf")
    got, wanted = frozen(x), model(x)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.nan_to_num(), wanted.nan_to_num())
    assert_independent_of_threads(cnnfast.freeze(model, x.nan_to_num(), dtype=torch.bfloat16), x.nan_to_num())


def test_bfloat16_max_pool_between_slices():
    """It reads and writes channels of a concatenation, and leaves zeros around its image."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.other = nn.MaxPool2d(3, 1, padding=1), nn.MaxPool2d(5, 1, padding=2)
            self.conv = nn.Conv2d(21 + 21 + 7, 9, 3, padding=1)

        def forward(self, x):
            return self.conv(torch.cat([self.pool(x), self.other(x), x[:, 7:14]], 1))

    model, x = Branches().eval(), torch.randn(2, 21, 10, 12)
    frozen = cnnfast.freeze(model, x, dtype=torch.bfloat16)
    assert steps_of(frozen, x).count("max pool") == 2
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        rounded.conv.weight.copy_(rounded.conv.weight.bfloat16())
        wanted = rounded.double()(x.bfloat16().double())
    assert (frozen(x) - wanted).abs().max() < 2**-8 * wanted.abs().max()


def test_bfloat16_max_pool_behind_a_norm():
    """A batch norm on the way in is computed in float32."""
    bn = nn.BatchNorm2d(13)
    nn.init.normal_(bn.weight), nn.init.normal_(bn.bias)
    model = nn.Sequential(bn, nn.ReLU(), nn.MaxPool2d(2)).eval()
    x = torch.randn(2, 13, 8, 8).bfloat16().float()
    frozen = cnnfast.freeze(model, x, dtype=torch.bfloat16)
    assert "affine, max pool" in steps_of(frozen, x)
    with torch.no_grad():
        wanted = model(x)
    assert (frozen(x) - wanted).abs().max() <= 2**-8 * wanted.abs().max()
