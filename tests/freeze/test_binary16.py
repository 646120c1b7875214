"""Sums and products of bfloat16 images in a plan: what float32 gives, rounded once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast

from .support import assert_independent_of_threads, needs_extension, steps_of

pytestmark = needs_extension


class Of(nn.Module):
    """A function of three parts of the channels: images, images, and the means of images, one per channel."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        channels = x.shape[1] // 3
        gate = F.adaptive_avg_pool2d(x[:, 2 * channels :], 1)
        return self.function(x[:, :channels], x[:, channels : 2 * channels], gate)


def parts(x, y, gate):
    return torch.cat((x, y, gate.expand_as(x)), 1)


FUNCTIONS = {
    "product": lambda x, y, gate: x * gate,
    "product_first": lambda x, y, gate: gate * x,
    "product_relu": lambda x, y, gate: F.relu(x * gate),
    "product_relu6": lambda x, y, gate: F.relu6(x * gate),
    "product_and_sum": lambda x, y, gate: x * gate + y,
    "product_and_sum_relu": lambda x, y, gate: F.relu(x * gate + y),
    "sum": lambda x, y, gate: x + y,
    "sum_relu": lambda x, y, gate: F.relu(x + y),
    "sum_of_a_channel": lambda x, y, gate: x + gate,
    "sum_of_a_channel_relu": lambda x, y, gate: F.relu(x + gate),
}


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 5, 7, 4), (2, 16, 1, 9), (2, 45, 6, 5), (1, 160, 9, 13)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rounded_once(name, size):
    make = torch.Generator().manual_seed(sum(size))
    x, y = (torch.randn(size, generator=make).bfloat16().float() * 4 for _ in range(2))
    gate = torch.randn(*size[:2], 1, 1, generator=make).bfloat16().float()
    model = Of(FUNCTIONS[name]).eval()
    images = parts(x, y, gate)
    frozen = cnnfast.freeze(model, images, dtype=torch.bfloat16, strict=True)
    assert torch.equal(frozen(images), model.function(x, y, gate).bfloat16().float())
    assert_independent_of_threads(frozen, images)


def test_values_that_are_no_numbers_pass():
    x = torch.tensor([float("nan"), float("inf"), -1.0, 3e38]).reshape(1, 1, 2, 2).expand(2, 20, 2, 2)
    gate = torch.tensor([2.0, 0.0]).reshape(2, 1, 1, 1).expand(2, 20, 1, 1)
    model = Of(lambda x, y, gate: x * gate + y)
    images = parts(x, x, gate)
    frozen = cnnfast.freeze(model, images, dtype=torch.bfloat16, strict=True)
    wanted = model.function(x.bfloat16().float(), x.bfloat16().float(), gate).bfloat16().float()
    torch.testing.assert_close(frozen(images), wanted, rtol=0, atol=0, equal_nan=True)


def test_slices_of_a_concatenation():
    """Operands and results whose pixels lie apart."""
    model = Of(lambda x, y, gate: torch.cat((x * gate, F.relu(x + y), y + gate), 1))
    make = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 24, 5, 6, generator=make).bfloat16().float() for _ in range(2))
    gate = torch.rand(2, 24, 1, 1, generator=make).bfloat16().float()
    images = parts(x, y, gate)
    frozen = cnnfast.freeze(model.eval(), images, dtype=torch.bfloat16, strict=True)
    assert torch.equal(frozen(images), model.function(x, y, gate).bfloat16().float())


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 70, 7, 4), (2, 64, 1, 9), (2, 130, 16, 15)])
def test_means_of_images(size):
    x = torch.randn(size, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    frozen = cnnfast.freeze(nn.AdaptiveAvgPool2d(1), x, dtype=torch.bfloat16, strict=True)
    assert "mean over images" in steps_of(frozen, x)
    wanted = x.double().mean((2, 3), keepdim=True)
    difference = (frozen(x).double() - wanted).abs()
    assert (difference <= wanted.abs() * 2**-8 + 1e-6).all()
    assert_independent_of_threads(frozen, x)
