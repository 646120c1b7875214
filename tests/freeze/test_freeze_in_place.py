"""Writes in place and views in networks that no single plan holds: values keep their order."""

import copy

import pytest
import torch
import torch.nn.functional as F

import cnnfast
from cnnfast.freeze import EagerNet, JoinedNet, UnsupportedNetworkError

from .parts_support import IMAGE, Net, check, conv
from .support import assert_near, needs_extension

pytestmark = needs_extension


def test_in_place_operations_keep_their_order():
    def function(s, x):
        y = s.a(x)
        z = F.softplus(y)  # eager, of the value before the writes
        y = y.relu_()
        w = s.b(y)
        y.clamp_(max=0.3)  # eager, in place
        return s.c(y) + z + w

    check(Net(function, a=conv(3, 4), b=conv(4, 4), c=conv(4, 4)))


def test_in_place_writes_into_the_input_of_an_eager_layer():
    def function(s, x):
        y = s.a(x)
        view = F.softplus(y)
        view.relu_()
        y += view
        return s.b(y), view

    check(Net(function, a=conv(3, 4), b=conv(4, 4)))


def test_in_place_write_that_a_view_reads_is_left_to_eager():
    def function(s, x):
        y = s.a(x)
        rows = y.flatten(2)
        y.relu_()
        return s.b(y), rows

    with pytest.raises(UnsupportedNetworkError, match="freeze: Net has layers"):
        cnnfast.freeze(Net(function, a=conv(3, 4), b=conv(4, 4)).eval(), IMAGE, strict=True)
    check(Net(function, a=conv(3, 4), b=conv(4, 4)), kind=EagerNet, plans=2)


def turned(x):
    return x.movedim(2, 3)


WRITES_INTO_VIEWS = {
    "transposed": lambda y: (turned(y).add_(torch.arange(y.shape[2])), y)[1],
    "overlapping": lambda y: (y[:, :3].mul_(2), y[:, 1:])[1],
    "sides_of_a_small_image": lambda y: (y[:, :, :12].mul_(2), y)[1],
    "first_image": lambda y: (y[:1].mul_(2), y)[1],
}


@pytest.mark.parametrize("name", WRITES_INTO_VIEWS)
@pytest.mark.parametrize("batch", [1, 2])
def test_in_place_writes_into_views_of_equal_shape(name, batch):
    """What has one shape for the example (square images, one image) need not be one view."""

    def function(s, x):
        y = torch.cumsum(s.a(x), 1)
        y = WRITES_INTO_VIEWS[name](y)
        return s.b(y[:, :3]) + y[:, -1:]

    model, x = Net(function, a=conv(3, 4), b=conv(3, 4)).eval(), torch.randn(batch, 3, 12, 12)
    frozen = cnnfast.freeze(model, x)
    for images in (x, torch.randn(3, 3, 12, 12), torch.randn(1, 3, 14, 14)):
        with torch.no_grad():
            assert_near(frozen(images), copy.deepcopy(model).double()(images.double()))


def test_in_place_write_beside_another_slice():
    def function(s, x):
        a, b = s.a(x).chunk(2, 1)
        a += F.softplus(b)
        return s.b(torch.cat([b, a], 1))

    check(Net(function, a=conv(3, 4), b=conv(4, 4)), kind=JoinedNet)


def test_views_behind_plans_and_sizes_of_inner_values():
    def function(s, x):
        y = s.a(x)
        n, c, h, w = y.shape
        z = y.view(n, c // 2, 2, h, w).flip(2).reshape(n, c, h, w)
        return s.b(z).view(n, -1)

    frozen = check(Net(function, a=conv(3, 4), b=conv(4, 4)))
    x = torch.randn(1, 3, 7, 9)
    assert frozen(x).shape == (1, 4 * 63)
