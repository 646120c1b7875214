"""1x1 convolutions of bfloat16 values without bfloat16 products: pixels are widened once for all of them."""

import pytest
import torch
from torch import nn

import cnnfast
from cnnfast.nn import Inception

from .support import assert_independent_of_threads, needs_extension, steps_of, truth, widens_all
from .test_bfloat16 import assert_as_near_as_autocast, frozen_in_bfloat16, run_elsewhere

pytestmark = needs_extension

needs_widening = pytest.mark.skipif(not widens_all(), reason="this CPU multiplies pairs of bfloat16")


class Branches(nn.Module):
    """1x1 branches of one value; the first is read with a border, all lie side by side or alone."""

    def __init__(self, channels, widths, joined):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(channels, width, 1) for width in widths)
        self.joined = joined

    def forward(self, x):
        x = torch.relu(x)
        y = [branch(x) for branch in self.branches]
        y = [torch.relu(y[0]), torch.sigmoid(y[1]), *y[2:]]
        return torch.cat(y, 1) if self.joined else tuple(y)


def alone(model, x):
    """The same branches, each in a plan of its own."""
    parts = [nn.Sequential(nn.ReLU(), branch) for branch in model.branches]
    parts[0].append(nn.ReLU()), parts[1].append(nn.Sigmoid())
    return [frozen_in_bfloat16(part.eval(), x)(x) for part in parts]


def only_steps_of(frozen, x):
    """Those of a network with several results: it has one plan."""
    (plan,) = frozen.plans().values()
    return steps_of(plan, x)


SHAPES = {"many": (4, 37, 41), "few": (1, 9, 9), "one": (3, 1, 1), "row": (2, 1, 70)}


@needs_widening
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels, widths", [(48, (64, 17, 96)), (33, (5, 16)), (64, (1, 40, 130, 8))])
def test_widened_siblings_are_as_if_alone(channels, widths, shape, joined):
    images, height, width = SHAPES[shape]
    model, x = Branches(channels, widths, joined).eval(), torch.randn(images, channels, height, width)
    frozen = frozen_in_bfloat16(model, x)
    assert f"{len(widths)} siblings: conv 1x1" in (steps_of if joined else only_steps_of)(frozen, x)
    got, wanted = frozen(x), alone(model, x)
    for value, expected in zip(got.split(widths, 1) if joined else got, wanted, strict=True):
        assert torch.equal(value, expected)
    if joined:
        assert_as_near_as_autocast(frozen, model, x)
        assert_independent_of_threads(frozen, x)


@needs_widening
@pytest.mark.parametrize("pool", [(3, 1, 1), (3, 2, 0), (2, 2, 0)])
@pytest.mark.parametrize("channels, width", [(48, 33), (130, 16), (7, 5)])
@pytest.mark.parametrize("shape", [(14, 37, 29), (1, 6, 6), (2, 3, 70)])
def test_widened_pooling_is_as_if_alone(pool, channels, width, shape):
    images, height, columns = shape
    kernel, stride, padding = pool
    conv = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU())
    model = nn.Sequential(nn.MaxPool2d(kernel, stride, padding), *conv).eval()
    x = torch.randn(images, channels, height, columns)
    frozen = frozen_in_bfloat16(model, x)
    text = steps_of(frozen, x)
    assert "max pool" in text and ", conv 1x1" in text and text.count("pool") == 1
    pooled = model[0](x)
    assert torch.equal(frozen(x), frozen_in_bfloat16(conv, pooled)(pooled))
    assert_as_near_as_autocast(frozen, model, x)
    assert_independent_of_threads(frozen, x)


@needs_widening
@pytest.mark.parametrize("images, size", [(1, 6), (4, 28)])
def test_widened_inception_block(images, size):
    model, x = Inception(96, 32, (48, 64), (16, 32), 24).eval(), torch.randn(images, 96, size, size)
    frozen = frozen_in_bfloat16(model, x, winograd=False)
    text = steps_of(frozen, x)
    assert "3 siblings" in text and "max pool 3x3 / 1x1, conv 1x1" in text
    assert_as_near_as_autocast(frozen, model, x)
    assert_independent_of_threads(frozen, x)
    x[images - 1, 5, 3, 2] = float("nan")
    assert torch.equal(frozen(x).isnan(), truth(model, x).isnan())


@needs_widening
@pytest.mark.parametrize("images, size", [(16, 5), (2, 4)])
def test_widened_siblings_whose_weights_outweigh_the_pixels(images, size):
    """Threads divide output channels, of some siblings or of all."""
    model, x = Inception(512, 384, (256, 320), (12, 128), 128).eval(), torch.randn(images, 512, size, size)
    frozen = frozen_in_bfloat16(model, x)
    assert "siblings" in steps_of(frozen, x)
    assert_as_near_as_autocast(frozen, model, x)
    assert_independent_of_threads(frozen, x)


@needs_widening
def test_what_is_read_with_a_border_gets_one():
    """A late 3x3 layer multiplies pairs even here, and reads zeros around what a sibling wrote."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(40, 256, 1), nn.Conv2d(40, 192, 1)
            self.last = nn.ModuleList(nn.Conv2d(width, 320, 3, padding=1) for width in (256, 192))

        def forward(self, x):
            return self.last[0](self.a(x)) + self.last[1](self.b(x))

    model, x = Block().eval(), torch.randn(1, 40, 3, 4)
    frozen = frozen_in_bfloat16(model, x)
    text = steps_of(frozen, x)
    assert "2 siblings" in text and text.count("pairs of bfloat16") == 2
    assert_as_near_as_autocast(frozen, model, x)
    first = frozen(x)
    frozen(torch.full_like(x, float("nan")))
    assert torch.equal(frozen(x), first)


@needs_widening
def test_a_pooling_that_is_read_twice_keeps_its_value_in_bfloat16():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(64, 64, 1)

        def forward(self, x):
            y = nn.functional.max_pool2d(x, 2)
            return self.conv(y) + y

    model, x = Twice().eval(), torch.randn(4, 64, 48, 48)
    frozen = frozen_in_bfloat16(model, x)
    assert ", conv 1x1" not in steps_of(frozen, x)
    assert_as_near_as_autocast(frozen, model, x)


@needs_widening
def test_poolings_that_compute_stay_steps_of_their_own():
    """Means, and the largest of what a batch norm gives, are no bfloat16 values before they are rounded."""
    bn = nn.BatchNorm2d(40)
    nn.init.normal_(bn.weight), nn.init.normal_(bn.bias)
    x = torch.randn(2, 40, 12, 12)
    for first in ((nn.AvgPool2d(2),), (bn, nn.ReLU(), nn.MaxPool2d(2))):
        model = nn.Sequential(*first, nn.Conv2d(40, 24, 1)).eval()
        frozen = frozen_in_bfloat16(model, x)
        assert "pool" in steps_of(frozen, x) and ", conv 1x1" not in steps_of(frozen, x)
        assert_as_near_as_autocast(frozen, model, x)


def test_plans_of_pairs_have_no_siblings():
    run_elsewhere(("inception_net",), CNNFAST_BF16_PAIRS="1")


def test_the_plan_says_what_shares_a_step():
    model, x = cnnfast.models.googlenet().eval(), torch.randn(1, 1, 96, 96)
    text = steps_of(frozen_in_bfloat16(model, x), x)
    assert (text.count("3 siblings") >= 7, text.count("max pool 3x3 / 1x1, conv 1x1") >= 7) == (
        widens_all(),
        widens_all(),
    )
