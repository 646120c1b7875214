"""Forwards that write into their module, their values or their weights, or draw: nothing of it is lost."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast

from .tracing_support import IMAGE, Stack, check


def test_fuse_forward_that_counts_stays():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.calls = Stack(), 0

        def forward(self, x):
            self.calls += 1
            return self.a(x) * self.calls

    fused = cnnfast.fuse(Counting().eval())
    torch.testing.assert_close(fused(IMAGE) * 2, fused(IMAGE))
    assert "changes the module (attribute 'calls')" in str(fused.report())
    assert fused.report()["a.conv"].status == "fused"


class Keeping(nn.Module):
    """A forward that writes somewhere, by the name of what it writes."""

    def __init__(self, what):
        super().__init__()
        self.a, self.what, self.kept, self.named = Stack(), what, [[]], {"calls": 0}
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        y = self.a(x)
        if self.what == "kept":
            self.kept[0].append(y)
        elif self.what == "named":
            self.named["calls"] += 1
        elif self.what == "mean":
            self.mean = 0.9 * self.mean + y.detach().mean((0, 2, 3))
        elif self.what == "last":
            self.a.conv.last = y
        return y * (1 + self.mean.view(-1, 1, 1))


@pytest.mark.parametrize("what", ["kept", "named", "mean", "last"])
def test_fuse_forward_that_writes_into_the_module_stays(what):
    model, eager = Keeping(what).eval(), Keeping(what).eval()
    eager.load_state_dict(model.state_dict())
    fused = cnnfast.fuse(model)
    assert model.kept == [[]] and model.named == {"calls": 0}, "tracing wrote into the user's module"
    assert f"changes the module (attribute '{what}')" in str(fused.report())
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fused(IMAGE), eager(IMAGE), rtol=0, atol=1e-5)
    assert fused.named == eager.named and len(fused.kept[0]) == len(eager.kept[0])
    torch.testing.assert_close(fused.mean, eager.mean)
    assert hasattr(fused.a.conv, "last") == (what == "last")


def test_fuse_buffer_written_in_place_is_written():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = Stack()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.a(x) * self.calls

    fused = cnnfast.fuse(Counting().eval())
    assert fused.report().coverage.layers == 1 and not fused.report().notes
    torch.testing.assert_close(fused(IMAGE) * 2, fused(IMAGE))


def test_fuse_forward_that_draws_stays():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = Stack()

        def forward(self, x):
            return self.a(x) * torch.rand(1)

    fused = cnnfast.fuse(Noisy().eval())
    assert not torch.equal(fused(IMAGE), fused(IMAGE))
    assert "register it as a buffer" in str(fused.report())


def test_fuse_buffers_are_read_at_run_time():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.register_buffer("scale", torch.ones(1))

        def forward(self, x):
            return self.conv(x) * (self.scale * 2)

    fused = cnnfast.fuse(Scaled())
    before = fused(IMAGE)
    fused.scale.fill_(3)
    torch.testing.assert_close(fused(IMAGE), before * 3)


SETS_ATTRIBUTES = {
    "data": lambda net: net.conv.weight.data.__imul__(net.mask),
    "assigned": lambda net: setattr(net.conv.weight, "data", net.conv.weight.data * net.mask),
    "augmented": lambda net: mask_weight(net),
}


def mask_weight(net):
    net.conv.weight.data *= net.mask


@pytest.mark.parametrize("how", SETS_ATTRIBUTES)
def test_fuse_weights_masked_in_the_forward(how):
    """As autoregressive convolutions are often written."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.register_buffer("mask", torch.ones(3, 3, 3, 3).tril())

        def forward(self, x):
            SETS_ATTRIBUTES[how](self)
            return F.relu(self.conv(x))

    model = Net().eval()
    fused = cnnfast.fuse(copy.deepcopy(model))
    got = fused(IMAGE)
    torch.testing.assert_close(got, model(IMAGE), rtol=0, atol=1e-5)
    assert torch.equal(fused.conv.weight, model.conv.weight)
    frozen_of = copy.deepcopy(model)
    torch.nn.init.ones_(frozen_of.conv.weight)
    wanted = copy.deepcopy(frozen_of)(IMAGE)
    if cnnfast._ext.AVAILABLE:
        frozen = cnnfast.freeze(frozen_of, IMAGE, allow_eager=True)
        torch.testing.assert_close(frozen(IMAGE), wanted, rtol=0, atol=1e-5)


def rows(y):
    return y.view(y.size(0), -1)


WRITES_INTO_VIEWS = {
    "view": lambda y: y.view(-1).relu_(),
    "reshape": lambda y: y.reshape(y.size(0), -1).mul_(2),
    "flatten": lambda y: torch.flatten(y, 1)[:, :5].zero_(),
    "contiguous": lambda y: y.contiguous().add_(1),
    "view_of_a_view": lambda y: rows(y)[:, :10].zero_(),
    "groups": lambda y: y.view(y.size(0), 3, 1, 8, 8)[:, 1].mul_(2),
}


@pytest.mark.parametrize("name", WRITES_INTO_VIEWS)
def test_fuse_view_with_write_in_place(name):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            y = self.conv(x)
            WRITES_INTO_VIEWS[name](y)
            return y * 2

    assert check(Net())["conv"].status == "fused"


def test_fuse_strides_in_a_forward():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            y = self.conv(x)
            return torch.as_strided(y, (2, 3, 4, 4), (192, 64, 8, 1)) * y.stride(1), rows(y)

    assert check(Net())["conv"].status == "fused"
