"""Squeeze-excite's product is taken on the way into the 1x1 convolution behind it."""

import pytest
import torch
from torch import nn

import cnnfast

from .support import assert_independent_of_threads, assert_near, needs_extension, steps_of, truth

pytestmark = needs_extension


class Excited(nn.Module):
    """x * sigmoid(f(mean of x)), then a convolution, with a residual or without."""

    def __init__(self, channels, width, kernel=1, stride=1, residual=False, twice=False, act=None):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)
        self.conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2)
        self.skip = nn.Conv2d(channels, width, 1) if residual else None
        self.twice, self.act = twice, act

    def forward(self, x):
        mean = nn.functional.adaptive_avg_pool2d(x, 1)
        y = x * torch.sigmoid(self.up(torch.relu(self.down(mean))))
        y = self.act(y) if self.act else y
        z = self.conv(y)
        if self.skip is not None:
            z = torch.relu(z + self.skip(x))
        return torch.cat([y, z], 1) if self.twice else z


@pytest.mark.parametrize("images, size", [(1, (7, 7)), (3, (9, 13)), (2, (56, 40)), (1, (1, 1))])
@pytest.mark.parametrize("channels, width", [(72, 24), (37, 19), (160, 264)])
@pytest.mark.parametrize("form", [{}, {"residual": True}, {"act": nn.ReLU()}, {"act": nn.SiLU()}])
def test_values(form, channels, width, images, size):
    model, x = Excited(channels, width, **form).eval(), torch.randn(images, channels, *size)
    frozen = cnnfast.freeze(model, x)
    # Of one pixel, both factors are of one shape: a product value by value.
    assert ("multiply, one value per channel, conv 1x1" in steps_of(frozen, x)) == (size != (1, 1))
    assert_near(frozen(x), truth(model, x))
    assert_independent_of_threads(frozen, x)


@pytest.mark.parametrize("form", [{"kernel": 3}, {"stride": 2}, {"twice": True}])
def test_products_that_are_values_of_their_own(form):
    model, x = Excited(32, 24, **form).eval(), torch.randn(2, 32, 8, 8)
    frozen = cnnfast.freeze(model, x)
    assert "one value per channel, conv" not in steps_of(frozen, x)
    assert_near(frozen(x), truth(model, x))


def test_not_a_number_stays_in_its_image():
    model, x = Excited(48, 32).eval(), torch.randn(3, 48, 20, 20)
    frozen = cnnfast.freeze(model, x)
    x[1, 7, 3, 4] = float("nan")
    assert torch.equal(torch.isnan(frozen(x)), torch.isnan(truth(model, x)))


class Dense(nn.Module):
    """How a dense layer begins: batch norm, an activation and a 1x1 convolution of part of the channels."""

    def __init__(self, channels, width, act):
        super().__init__()
        self.norm, self.act, self.conv = nn.BatchNorm2d(channels), act, nn.Conv2d(channels, width, 1)
        nn.init.normal_(self.norm.weight), nn.init.normal_(self.norm.bias)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x):
        return torch.cat([x, self.conv(self.act(self.norm(x)))], 1)


@pytest.mark.parametrize("images, size", [(1, (7, 7)), (3, (31, 22))])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.SiLU()])
def test_batch_norm_on_the_way_in(act, images, size):
    model = nn.Sequential(Dense(70, 40, act), Dense(110, 33, act)).eval()
    x = torch.randn(images, 70, *size)
    frozen = cnnfast.freeze(model, x)
    assert steps_of(frozen, x).count("affine, conv 1x1") == 2
    assert_near(frozen(x), truth(model, x))
    assert_independent_of_threads(frozen, x)
