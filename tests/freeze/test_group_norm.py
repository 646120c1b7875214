"""Group and instance norms of frozen networks: few channels and many, odd sizes, means far from zero."""

import pytest
import torch
from torch import nn

import cnnfast

from .support import assert_independent_of_threads, assert_near, needs_extension, truth

pytestmark = needs_extension

GROUPS = [
    (2, 2),
    (3, 1),
    (5, 5),
    (12, 4),
    (15, 5),
    (16, 16),
    (20, 10),
    (48, 48),
    (130, 2),
    (200, 8),
    (600, 600),
]
ACTIVATIONS = {
    "none": nn.Identity(),
    "relu": nn.ReLU(),
    "leaky": nn.LeakyReLU(0.3),
    "silu": nn.SiLU(),
}


def network(channels, groups, activation="none", affine=True):
    torch.manual_seed(channels)
    norm = nn.GroupNorm(groups, channels, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    # Too little for a plan by itself: a layer in front gives it values of its own memory.
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1, groups=channels), norm, ACTIVATIONS[activation]
    ).eval()


def images(channels, size, offset=0.0, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, *size, generator=generator) + offset


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 40)], ids=str)
@pytest.mark.parametrize(("channels", "groups"), GROUPS)
def test_values(channels, groups, size):
    if size == (1, 1) and channels == groups:
        return  # the norm of one value is its bias
    for activation in ACTIVATIONS:
        model = network(channels, groups, activation, affine=activation != "silu")
        frozen = cnnfast.freeze(model, images(channels, size), strict=True)
        for batch in (1, 3):
            x = images(channels, size, batch=batch)
            assert_near(frozen(x), truth(model, x))


@pytest.mark.parametrize(("channels", "groups"), [(2, 2), (16, 16), (40, 8), (130, 2)])
def test_means_far_from_zero(channels, groups):
    """A sum of squares less a square of sums would have no digit left."""
    model = network(channels, groups)
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].bias.fill_(1000)
    x = images(channels, (29, 31))
    frozen = cnnfast.freeze(model, x, strict=True)
    assert_near(frozen(x), truth(model, x), 1e-3)


@pytest.mark.parametrize("channels", [3, 16, 33])
def test_number_of_threads_and_nan(channels):
    model, x = network(channels, channels), images(channels, (12, 11))
    frozen = cnnfast.freeze(model, x, strict=True)
    assert_independent_of_threads(frozen, x)
    wanted = frozen(x)
    x[1, 1, 3, 4] = float("nan")
    got = frozen(x)
    assert got[1, 1].isnan().all()
    got[1, 1] = wanted[1, 1]
    assert torch.equal(got, wanted)
