"""1x1 convolutions of one value run together, block of pixels by block of pixels."""

import pytest
import torch
from torch import nn

import cnnfast
from cnnfast.nn import Inception

from .support import assert_independent_of_threads, assert_near, needs_extension, steps_of, truth

pytestmark = needs_extension


class Branches(nn.Module):
    """Branches of several widths and activations, behind a layer of their own; one of them is padded."""

    def __init__(self, channels: int, widths: tuple[int, ...], joined: bool):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.branches = nn.ModuleList(nn.Conv2d(channels, width, 1) for width in widths)
        self.last = nn.Conv2d(widths[0], 5, 3, padding=1)
        self.joined = joined

    def forward(self, x):
        x = torch.relu(self.first(x))
        y = [branch(x) for branch in self.branches]
        y = [torch.relu(y[0]), torch.sigmoid(y[1]), *y[2:]]
        y.append(self.last(y[0]))  # reads the first branch with a border around it
        return torch.cat(
            y if self.joined else [nn.functional.adaptive_max_pool2d(value, 2) for value in y], 1
        )


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("channels, widths", [(48, (64, 17, 96)), (33, (5, 16)), (64, (1, 40, 130, 8))])
def test_siblings_values(channels, widths, joined):
    model, x = Branches(channels, widths, joined).eval(), torch.randn(4, 3, 37, 41)
    frozen = cnnfast.freeze(model, x)
    assert f"{len(widths)} siblings" in steps_of(frozen, x)
    assert_near(frozen(x), truth(model, x))
    assert_independent_of_threads(frozen, x)


def test_siblings_of_few_pixels_run_on_their_own():
    """What stays in cache between two convolutions gains nothing; their threads split each of them better."""
    model, x = Branches(32, (16, 16), True).eval(), torch.randn(1, 3, 9, 9)
    frozen = cnnfast.freeze(model, x)
    assert "siblings" not in steps_of(frozen, x)
    assert_near(frozen(x), truth(model, x))


def test_siblings_whose_weights_outweigh_the_pixels():
    model = nn.Sequential(Inception(512, 384, (256, 320), (48, 128), 128)).eval()
    x = torch.randn(16, 512, 5, 5)
    frozen = cnnfast.freeze(model, x)
    assert "3 siblings" in steps_of(frozen, x)
    assert_near(frozen(x), truth(model, x))


def test_a_branch_with_a_pooling_of_its_own_is_no_sibling():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(32, width, 1) for width in (8, 16, 24))

        def forward(self, x):
            pooled = nn.functional.max_pool2d(self.a(x), 2)
            return pooled, torch.relu(self.b(x)) + 1, self.c(x)

    model, x = Pooled().eval(), torch.randn(3, 32, 48, 48)
    frozen = cnnfast.freeze(model, x)
    for got, wanted in zip(frozen(x), truth(model, x), strict=True):
        assert_near(got, wanted)
