"""Zeros around an image in a plan's memory: threads share them by its rows, whoever computes them."""

import pytest
import torch

import cnnfast

from .support import assert_near, needs_extension, truth

pytestmark = needs_extension


class Padded(torch.nn.Module):
    """Values with borders of one and two pixels, in memory that others have used before."""

    def __init__(self, channels=64, wide=192):
        super().__init__()
        self.first = torch.nn.Conv2d(3, channels, 5, padding=2)
        self.expand = torch.nn.Conv2d(channels, wide, 1)
        self.depthwise = torch.nn.Conv2d(wide, wide, 5, padding=2, groups=wide)
        self.project = torch.nn.Conv2d(wide, channels, 1)
        self.last = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        for _ in range(2):
            y = torch.relu(self.depthwise(torch.relu(self.expand(x))))
            x = self.last(torch.relu(self.project(y))) + x
        return x


def answers(frozen, x, teams=(1, 2, 3, 4)):
    """By teams of so many threads; twice each, for the memory to be used before."""
    threads = torch.get_num_threads()
    try:
        for team in teams:
            torch.set_num_threads(team)
            frozen(x)
            yield frozen(x)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 1, 40), (1, 2, 40), (1, 7, 9), (1, 15, 14), (2, 5, 17), (3, 14, 14)])
def test_borders_do_not_depend_on_threads(size, dtype):
    torch.manual_seed(7)
    images, height, width = size
    model, x = Padded().eval(), torch.randn(images, 3, height, width)
    frozen = cnnfast.freeze(model, x, dtype=dtype, strict=True)
    wanted = truth(model, x)
    for y in answers(frozen, x):
        assert_near(y.float(), wanted, relative=2e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("height", [2, 3, 7, 14, 17])
def test_pixels_of_few_rows_are_the_same_by_any_team(height):
    """Threads share whole rows, or pixels where rows are uneven; no value depends on where they are cut."""
    torch.manual_seed(8)
    model, x = Padded().eval(), torch.randn(1, 3, height, height)
    frozen = cnnfast.freeze(model, x, dtype=torch.bfloat16, strict=True)
    first, *others = answers(frozen, x)
    assert all(torch.equal(y, first) for y in others)
