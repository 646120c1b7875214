"""What the tests of networks in several plans share."""

import copy

import torch
from fuse.networks import liven
from torch import nn

import cnnfast
from cnnfast.freeze import JoinedNet
from cnnfast.plan.record import tensors_in

from .support import assert_near

IMAGE = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """Layers by name, and a function of them and the inputs as the forward."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.function(self, x)


def conv(a, b, size=3, **options):
    return nn.Conv2d(a, b, size, padding=size // 2, **options)


def check(model, *inputs, kind=JoinedNet, plans=None):
    """The frozen network, behind a check of its values at two batch sizes against float64."""
    torch.manual_seed(0)
    model = liven(model).eval()
    inputs = inputs or (IMAGE,)
    frozen = cnnfast.freeze(model, inputs)
    assert isinstance(frozen, kind)
    assert plans is None or len(frozen.plans()) == plans
    double = copy.deepcopy(model).double()
    for batch in (inputs, tuple(torch.cat([x, x.flip(0)]) for x in inputs)):
        with torch.no_grad():
            wanted = double(*(x.double() for x in batch))
            got = frozen(*(x.clone() for x in batch))
        assert type(got) is type(wanted)
        for actual, right in zip(tensors_in(got), tensors_in(wanted), strict=True):
            assert_near(actual, right)
    return frozen


class Decides(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if x.sum() < 1e9 else x
