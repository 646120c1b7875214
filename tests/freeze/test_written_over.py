"""Depthwise convolutions that write over the rows of their input which they have read for the last time."""

import re

import pytest
import torch
from torch import nn

from cnnfast import _ext

from .support import assert_independent_of_threads, needs_extension, steps_of
from .test_depth_first import assert_as_eager, frozen_and_images

pytestmark = [
    needs_extension,
    pytest.mark.skipif(
        _ext.active_isa() not in ("avx512_bf16", "amx"),
        reason="needs vectors that multiply pairs of bfloat16",
    ),
]

SIZE = 28
# Second-level caches differ: of each several times the last one's memory, some fit one only if shared.
CHANNELS = (96, 144, 208, 304, 448, 640, 928)


class Block(nn.Module):
    def __init__(self, channels, kernel, stride, group):
        super().__init__()
        self.expand = nn.Conv2d(8, channels, 1)
        self.spread = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels // group)
        self.project = nn.Conv2d(channels, 8, 1)

    def forward(self, x):
        return self.project(torch.relu(self.spread(nn.functional.relu6(self.expand(x)))))


def bytes_between(steps):
    """Of groups that compute whole images: images at a time, and bytes of what their steps hand on."""
    found = re.findall(r"depth first: (\d+) steps (\d+) images at a time, (\d+) bytes", steps)
    return [(int(images), int(bytes_)) for steps, images, bytes_ in found if int(steps) >= 3]


def bytes_apart(channels, kernel, stride):
    """Of an image: the expanded one with zeros around it, and what the depthwise convolution makes of it."""
    side, half = SIZE + kernel - 1, SIZE // stride
    return 2 * channels * (side * side + half * half)


@pytest.mark.parametrize(("kernel", "stride", "group"), [(3, 1, 1), (5, 1, 1), (5, 2, 1), (3, 1, 4)])
def test_depthwise_convolutions_write_over_what_they_read(kernel, stride, group):
    """The same values as image by image, where all rows lie apart; for some size memory is shared."""
    shared = 0
    for channels in CHANNELS:
        torch.manual_seed(channels)
        model = Block(channels, kernel, stride, group)
        frozen, x = frozen_and_images(model, (12, 8, SIZE, SIZE))
        for images, held in bytes_between(steps_of(frozen, x)):
            shared += held < images * bytes_apart(channels, kernel, stride)
        y = frozen(x)
        assert torch.equal(y, torch.cat([frozen(image) for image in x.split(1)]))
        assert_as_eager(model, frozen, x)
        assert_independent_of_threads(frozen, x)
    assert shared > 0
