"""fuse and freeze in some threads while others run networks: tracing exchanges what a whole process calls."""

import builtins
import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

import cnnfast
from cnnfast import _ext

pytestmark = pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")

IMAGE = torch.randn(1, 3, 24, 20, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.register_buffer("offset", torch.full((1, channels, 1, 1), 0.5))

    def forward(self, x):
        half = int(x.shape[2] / 2)  # converted while it is traced
        return torch.relu(self.norm(self.conv(x)) + x + self.offset) * (float(half) / half)


class Keeps(Block):
    """Its forward stays; the convolution gets a forward of its own."""

    def forward(self, x):
        return self.conv(x) if torch.rand(()).item() < 2 else x


def network(seed, last=Block):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), *[Block(8) for _ in range(6)], last(8), nn.Conv2d(8, 4, 1)
    ).eval()


class Serving:
    """Threads that run a network until the block ends, and what went wrong."""

    def __init__(self, net, threads=2):
        self.net, self.wanted, self.wrong, self.calls = net, net(IMAGE).detach(), [], 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._serve) for _ in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _serve(self):
        while not self._over.is_set() and not self.wrong:
            try:
                with torch.no_grad():
                    if not torch.allclose(self.net(IMAGE), self.wanted, rtol=1e-4, atol=1e-5):
                        self.wrong.append("values")
            except Exception as error:  # whatever a call raises that was taken for a part of a trace
                self.wrong.append(repr(error))
            self.calls += 1


def exchanged_names():
    """And what torch keeps for the whole process, whichever thread it is about."""
    names = nn.Module.__call__, nn.Module.__getattr__, nn.Module.__getattribute__, builtins.isinstance
    of_torch = torch.as_tensor, torch.autograd.Function.apply, torch.jit.ScriptFunction.__call__
    return *names, *of_torch, is_in_torch_dispatch_mode()


@pytest.mark.parametrize("same", [False, True], ids=["another network", "the network itself"])
def test_freeze_while_a_network_serves(same):
    net, before = network(0), exchanged_names()
    with Serving(net if same else network(1)) as serving:
        frozen = [cnnfast.freeze(net, IMAGE) for _ in range(4)]
    assert not serving.wrong and serving.calls > 0
    assert exchanged_names() == before and "int" not in globals()
    torch.testing.assert_close(frozen[-1](IMAGE), net(IMAGE).detach(), rtol=1e-4, atol=1e-4)


def test_fuse_while_a_network_serves():
    net = network(0, last=Keeps)
    with Serving(network(1)) as serving:
        fused = [cnnfast.fuse(copy.deepcopy(net), IMAGE) for _ in range(4)]
    assert not serving.wrong and serving.calls > 0
    torch.testing.assert_close(fused[-1](IMAGE), net(IMAGE), rtol=1e-4, atol=1e-4)


def test_freeze_in_several_threads():
    nets, before = [network(seed) for seed in range(6)], exchanged_names()
    wanted = [net(IMAGE).detach() for net in nets]
    with ThreadPoolExecutor(3) as pool:
        frozen = list(pool.map(lambda net: cnnfast.freeze(net, IMAGE), nets))
    assert exchanged_names() == before and "int" not in globals()
    for net, right in zip(frozen, wanted, strict=True):
        torch.testing.assert_close(net(IMAGE), right, rtol=1e-4, atol=1e-4)
