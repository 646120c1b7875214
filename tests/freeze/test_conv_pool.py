"""A convolution and the pooling behind it run strip by strip; rows that two strips need are computed once."""

import re

import pytest
import torch
from torch import nn

import cnnfast

from .support import assert_independent_of_threads, assert_near, needs_extension, steps_of, truth

pytestmark = needs_extension


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(3, 2, padding=1), nn.MaxPool2d(5, 1, padding=2), nn.AvgPool2d(3, 1), nn.MaxPool2d(2, 2)],
    ids=["halved", "wide", "mean", "apart"],
)
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("norm", [nn.Identity(), nn.LocalResponseNorm(3, alpha=0.2)], ids=["plain", "normed"])
def test_strips_hand_rows_on(pool, images, norm):
    model = nn.Sequential(nn.Conv2d(3, 20, 5, 2, padding=2), nn.ReLU(), norm, pool).eval()
    x = torch.randn(images, 3, 118, 90)
    frozen = cnnfast.freeze(model, x, winograd=False)
    strips = re.search(r"pool.* (\d+) strips", steps_of(frozen, x))
    assert strips and int(strips[1]) > 1
    assert_near(frozen(x), truth(model, x))
    assert_independent_of_threads(frozen, x)


@pytest.mark.parametrize("channels", [8, 24])
@pytest.mark.parametrize("width", [5, 17, 28])
def test_groups_of_a_vector_of_channels(channels, width):
    """With a residual, so that blocks of every number of pixels end in each kind of epilogue."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels // 8)

        def forward(self, x):
            return torch.relu(self.conv(x) + x)

    model, x = Sum().eval(), torch.randn(2, channels, 9, width)
    frozen = cnnfast.freeze(model, x)
    assert_near(frozen(x), truth(model, x))
    assert_independent_of_threads(frozen, x)
