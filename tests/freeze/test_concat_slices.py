"""Concatenations of what a longer one begins or goes on with are slices of it: nothing is copied."""

import pytest
import torch
from torch import nn

import cnnfast

from .support import assert_independent_of_threads, assert_near, needs_extension, steps_of, truth

pytestmark = needs_extension


class Dense(nn.Module):
    """Every layer reads all values before it, concatenated anew, as torchvision's DenseNet does."""

    def __init__(self, layers, kernel, tail=True):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12 + 8 * i, 8, kernel, padding=kernel // 2), nn.ReLU())
            for i in range(layers)
        )
        self.tail = nn.Conv2d(12 + 8 * layers, 5, 1) if tail else nn.Identity()

    def forward(self, x):
        values = [self.first(x)]
        for layer in self.layers:
            values.append(layer(torch.cat(values, 1)))
        return self.tail(torch.cat(values, 1))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("winograd", [True, False])
def test_a_dense_block_copies_nothing(kernel, winograd):
    model, x = Dense(5, kernel).eval(), torch.randn(3, 3, 19, 22)
    frozen = cnnfast.freeze(model, x, winograd=winograd)
    text = steps_of(frozen, x)
    assert [line for line in text.splitlines() if ": copy" in line] == [text.splitlines()[0]]  # the input
    assert_near(frozen(x), truth(model, x))
    assert_independent_of_threads(frozen, x)


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_whole_is_an_output(kernel):
    """An output tensor has no room for padding: in front of 3x3 layers parts keep memory of their own."""
    model, x = Dense(3, kernel, tail=False).eval(), torch.randn(2, 3, 9, 14)
    frozen = cnnfast.freeze(model, x)
    assert_near(frozen(x), truth(model, x))
    assert_independent_of_threads(frozen, x)


class Orders(nn.Module):
    """Parts in the middle of a longer one, in another order, and twice."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(3, width, 1) for width in (16, 20, 9))
        self.readers = nn.ModuleList(nn.Conv2d(width, 4, 1) for width in (29, 36, 29, 32))

    def forward(self, x):
        a, b, c = (part(x) for part in self.parts)
        values = (torch.cat(v, 1) for v in ([b, c], [b, a], [c, b], [a, a]))
        read = [reader(v) for reader, v in zip(self.readers, values, strict=True)]
        return torch.relu(torch.cat([a, b, c], 1)), sum(read)


def test_other_orders():
    model, x = Orders().eval(), torch.randn(2, 3, 8, 7)
    frozen = cnnfast.freeze(model, x)
    for actual, wanted in zip(frozen(x), truth(model, x), strict=True):
        assert_near(actual, wanted)


class PartsReadLater(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 12, 1), nn.Conv2d(16, 5, 1)
        self.d, self.e = nn.Conv2d(28, 6, 1), nn.Conv2d(44, 7, 1)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        some, whole = torch.cat([a, b], 1), torch.sigmoid(torch.cat([a, b, a], 1))
        return self.e(whole), self.c(a), self.d(some)


def test_an_activation_in_place_leaves_parts_alone_that_are_read_later():
    model, x = PartsReadLater().eval(), torch.randn(2, 3, 8, 7)
    frozen = cnnfast.freeze(model, x)
    for actual, wanted in zip(frozen(x), truth(model, x), strict=True):
        assert_near(actual, wanted)
