"""bfloat16 plans: what convolutions of pairs do on the way in and out, as steps of their own would."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast
from cnnfast import _ext

from .support import assert_independent_of_threads, needs_extension, steps_of, widens_all

pytestmark = needs_extension
needs_pairs = pytest.mark.skipif(widens_all(), reason="run again with pairs, below")


def frozen_in_bfloat16(model, x):
    return cnnfast.freeze(model.eval(), x, dtype=torch.bfloat16, strict=True)


def multiplies_bfloat16():
    return _ext.active_isa() in ("avx512_bf16", "amx")


def filled(model):
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


class Gated(nn.Module):
    """A product with one factor per image and channel, and the 1x1 convolution behind it."""

    def __init__(self, channels, out, residual, shows_product):
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())
        self.project = nn.Conv2d(channels, out, 1)
        self.residual = residual
        self.shows_product = shows_product

    def forward(self, x):
        x = F.relu(x)
        product = x * self.gate(x)
        y = self.project(product)
        if self.residual:
            y = y + x
        return torch.cat((y, product), 1) if self.shows_product else y


@needs_pairs
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (20, 23)])
@pytest.mark.parametrize(("channels", "out", "residual"), [(24, 40, False), (72, 72, True), (200, 24, False)])
def test_products_on_the_way_in(images, size, channels, out, residual):
    x = torch.randn(images, channels, *size, generator=torch.Generator().manual_seed(1))
    fused, plain = (
        frozen_in_bfloat16(filled(Gated(channels, out, residual, shows)), x) for shows in (False, True)
    )
    if size != (1, 1):
        assert "multiply, one value per channel, conv 1x1" in steps_of(fused, x)
    assert "multiply, one value per channel, conv 1x1" not in steps_of(plain, x)
    got, wanted = fused(x), plain(x)[:, :out]
    if multiplies_bfloat16():
        assert torch.equal(got, wanted)
    else:  # widened products are not rounded in between
        assert (got - wanted).abs().max() <= 2**-7 * wanted.abs().max()
    assert_independent_of_threads(fused, x)


class Shuffled(nn.Module):
    """The channels of an image in turn with those of a convolution's result."""

    def __init__(self, channels, kernel, shows_result):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.behind = nn.Conv2d(2 * channels, 16, 3, padding=1)
        self.shows_result = shows_result

    def forward(self, x):
        kept, rest = x.chunk(2, 1)
        result = F.relu(self.conv(rest))
        y = self.behind(F.channel_shuffle(torch.cat((kept, result), 1), 2))
        return torch.cat((y, result), 1) if self.shows_result else y


@needs_pairs
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [1, 6, 16, 17, 24, 58, 64, 116])
def test_shuffles_on_the_way_out(channels, kernel):
    x = torch.randn(2, 2 * channels, 9, 11, generator=torch.Generator().manual_seed(1))
    x[0, 0, 2, 3], x[1, channels, 4, 5] = torch.inf, torch.nan
    fused, plain = (
        frozen_in_bfloat16(filled(Shuffled(channels, kernel, shows)), x) for shows in (False, True)
    )
    assert "shuffle" in steps_of(plain, x)
    if kernel == 1 and channels >= 16 and "kernels avx512_bf16" in steps_of(fused, x):
        assert "channels in turn with another image's" in steps_of(fused, x)
        assert "shuffle" not in steps_of(fused, x)
    got, wanted = fused(x), plain(x)[:, :16]
    assert torch.isnan(wanted).any() and torch.equal(got.nan_to_num(1e9), wanted.nan_to_num(1e9))
    assert_independent_of_threads(fused, torch.randn_like(x))


class GatedShuffle(nn.Module):
    """Both at once: the convolution behind a product makes the second image of a shuffle."""

    def __init__(self):
        super().__init__()
        self.gated = Gated(24, 24, False, False)

    def forward(self, x):
        kept, rest = x.chunk(2, 1)
        return F.channel_shuffle(torch.cat((kept, self.gated(rest)), 1), 2)


@needs_pairs
def test_products_in_front_of_shuffles():
    x = torch.randn(2, 48, 9, 11, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    model = filled(GatedShuffle())
    frozen = frozen_in_bfloat16(model, x)
    with torch.no_grad():
        wanted = model.eval()(x)
    assert torch.equal(frozen(x)[:, ::2], wanted[:, ::2])
    assert (frozen(x) - wanted).abs().max() <= 2**-6 * wanted.abs().max()
    assert_independent_of_threads(frozen, x)


@needs_pairs
def test_images_are_copied_in_strip_by_strip():
    """What reads an image finds its rows in cache; float32 and bfloat16 images, and any layout."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.ReLU(),
        nn.Conv2d(32, 64, 1), nn.ReLU(),
    )  # fmt: skip
    x = torch.randn(8, 3, 130, 121).bfloat16().float()
    frozen = frozen_in_bfloat16(model, x)
    steps = steps_of(frozen, x)
    assert steps.index("depth first") < steps.index("copy in"), steps
    wanted = frozen(x)
    for same in (x.bfloat16(), x.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(frozen(same), wanted)
    assert torch.equal(frozen(x[3:5]), wanted[3:5])
    assert_independent_of_threads(frozen, x)


@pytest.mark.skipif(not widens_all(), reason="the tests above ran with pairs")
def test_with_pairs():
    """As CPUs with bfloat16 arithmetic run it, on widened products."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"CNNFAST_BF16_PAIRS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
