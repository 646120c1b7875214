"""A pooling and the 1x1 convolution behind it run strip by strip."""

import pytest
import torch
from torch import nn

import cnnfast
from cnnfast.nn import Inception

from .support import assert_independent_of_threads, assert_near, needs_extension, steps_of, truth

pytestmark = needs_extension


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 1, padding=1),
        nn.MaxPool2d(3, 2),
        nn.AvgPool2d(3, 1, padding=1),
        nn.AvgPool2d(2, 2, count_include_pad=False, ceil_mode=True),
    ],
    ids=["max_same", "max_halved", "mean_same", "mean_ceil"],
)
@pytest.mark.parametrize("channels, width", [(48, 33), (130, 16)])
def test_pooling_and_convolution_share_a_step(pool, channels, width):
    model = nn.Sequential(pool, nn.Conv2d(channels, width, 1), nn.ReLU()).eval()
    x = torch.randn(14, channels, 37, 29)
    frozen = cnnfast.freeze(model, x)
    text = steps_of(frozen, x)
    assert "pool" in text and ", conv 1x1" in text and text.count("pool") == 1
    assert_near(frozen(x), truth(model, x))
    assert_independent_of_threads(frozen, x)


def test_inception_pools_on_the_way_into_its_projection():
    model, x = Inception(96, 32, (48, 64), (16, 32), 24).eval(), torch.randn(4, 96, 28, 28)
    frozen = cnnfast.freeze(model, x, winograd=False)
    text = steps_of(frozen, x)
    assert "3 siblings" in text and "max pool 3x3 / 1x1, conv 1x1" in text
    assert_near(frozen(x), truth(model, x))
    x[2, 5, 11, 7] = float("nan")
    assert torch.equal(torch.isnan(frozen(x)), torch.isnan(truth(model, x)))


def test_a_normalised_input_is_pooled_and_projected():
    bn = nn.BatchNorm2d(40)
    nn.init.normal_(bn.weight), nn.init.normal_(bn.bias)
    model = nn.Sequential(bn, nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(40, 24, 1)).eval()
    x = torch.randn(6, 40, 56, 56)
    frozen = cnnfast.freeze(model, x)
    assert "affine, max pool 2x2 / 2x2, conv 1x1" in steps_of(frozen, x)
    assert_near(frozen(x), truth(model, x))


def test_a_pooling_that_is_read_twice_keeps_its_value():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(64, 64, 1)

        def forward(self, x):
            y = nn.functional.max_pool2d(x, 2)
            return self.conv(y) + y

    model, x = Twice().eval(), torch.randn(4, 64, 48, 48)
    frozen = cnnfast.freeze(model, x)
    assert ", conv 1x1" not in steps_of(frozen, x)
    assert_near(frozen(x), truth(model, x))
