"""Strips of bfloat16 images are cut for the threads that there are; the results are the same for any cut."""

import re

import pytest
import torch
from torch import nn

from .support import (
    assert_independent_of_threads,
    needs_extension,
    steps_of,
    takes_fixed_point,
    widens_all,
)
from .test_bfloat16 import assert_as_near_as_autocast, frozen_in_bfloat16

pytestmark = [
    needs_extension,
    pytest.mark.skipif(not widens_all(), reason="this CPU multiplies pairs of bfloat16"),
]

LAYERS = {
    "direct": lambda: nn.Conv2d(24, 40, 3, stride=(2, 1), padding=1),
    "direct_far": lambda: nn.Conv2d(320, 320, 3, stride=(2, 1), padding=1),
    "winograd": lambda: nn.Conv2d(40, 40, 3, padding=1),
    "winograd_far": lambda: nn.Conv2d(128, 144, 3, padding=1),
    "winograd_5x5": lambda: nn.Conv2d(16, 40, 5, padding=2),
    "depthwise": lambda: nn.Conv2d(24, 24, 3, padding=1, groups=24),
    "grouped": lambda: nn.Conv2d(32, 32, 3, padding=1, groups=4),
}


class Residual(nn.Module):
    """The residual is read by strips, too."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        self.adds = conv.stride == (1, 1) and conv.in_channels == conv.out_channels

    def forward(self, x):
        return torch.relu(self.conv(x) + x) if self.adds else self.conv(x)


@pytest.mark.parametrize(
    "images, height, width", [(1, 13, 9), (1, 24, 24), (5, 7, 11), (19, 12, 12), (2, 75, 40)]
)
@pytest.mark.parametrize("layer", LAYERS)
def test_widened_strips_do_not_depend_on_threads(layer, images, height, width):
    model = Residual(LAYERS[layer]()).eval()
    x = torch.randn(images, model.conv.in_channels, height, width)
    frozen = frozen_in_bfloat16(model, x)
    fixed = takes_fixed_point() and "winograd" in layer
    assert ("16-bit fixed point" if fixed else "widened") in steps_of(frozen, x)
    assert_as_near_as_autocast(frozen, model, x)
    assert_independent_of_threads(frozen, x)
    for part in range(images):  # groups of images begin elsewhere
        assert torch.equal(frozen(x)[part : part + 1], frozen(x[part : part + 1])) or "winograd" in layer


needs_widened_winograd = pytest.mark.skipif(
    takes_fixed_point(), reason="Winograd's products are whole numbers here, which take no widened strips"
)


def strips_of(model, x):
    """For one thread, and for many."""
    found = re.search(
        r"widened to \S+, (\d+)(?: to (\d+))? strips", steps_of(frozen_in_bfloat16(model, x), x)
    )
    first, last = found.groups()
    return int(first), int(last or first)


@needs_widened_winograd
def test_one_thread_widens_a_small_image_at_once():
    """Strips of a row or two would leave most of a register block empty."""
    first, last = strips_of(nn.Conv2d(48, 96, 5, padding=2), torch.randn(1, 48, 9, 9))
    assert first == 1 < last
    assert strips_of(nn.Conv2d(8, 8, 3, stride=2, padding=1), torch.randn(1, 8, 900, 900))[0] > 4


@needs_widened_winograd
def test_strips_of_far_weights_are_blocks_of_tiles():
    """More images than one pass over the weights serves only leave the cache."""
    model, x = nn.Conv2d(64, 192, 3, padding=1), torch.randn(16, 64, 24, 24)
    text = steps_of(frozen_in_bfloat16(model, x), x)
    tile = int(re.search(r"winograd tiles of (\d+)", text).group(1))
    first, _ = strips_of(model, x)
    assert first > 2 and 16 // first * (24 // tile) ** 2 <= 3 * 16
