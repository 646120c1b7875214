"""Generated forwards ask each module once for its children."""

import torch
from torch import nn

import cnnfast
from cnnfast.fuse.fetching import fetch_modules_once

SOURCE = """
def forward(self, x, module_1):
    a = getattr(self.stem, "0").weight
    b = getattr(self.stem, "0").bias
    c = getattr(getattr(self.stem, "1").net, "0 1").bias
    d = self.scale
    e = self.head.linear.weight
    f = call(x, a, b, c, d, e, module_1);  a = b = None
    return f
"""
WANTED = """
def forward(self, x, module_1):
    module_0 = self.stem
    module_1_ = getattr(module_0, "0")
    a = module_1_.weight
    b = module_1_.bias
    module_2 = getattr(module_0, "1")
    module_3 = module_2.net
    module_4 = getattr(module_3, "0 1")
    c = module_4.bias
    d = self.scale
    module_5 = self.head
    module_6 = module_5.linear
    e = module_6.weight
    f = call(x, a, b, c, d, e, module_1);  a = b = None
    return f
"""


def test_modules_are_fetched_at_their_first_use():
    assert fetch_modules_once(SOURCE) == WANTED
    assert fetch_modules_once(WANTED.split("    d =")[0]) == WANTED.split("    d =")[0]


class Counting(nn.Sequential):
    """Counts how often its children are asked for."""

    asked = 0

    def __getattr__(self, name):
        if name.isdigit():
            Counting.asked += 1
        return super().__getattr__(name)


def test_fused_network_asks_for_a_layer_once(monkeypatch):
    monkeypatch.setattr(Counting, "asked", 0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
    fused = cnnfast.fuse(Counting(*layers).eval())
    Counting.asked = 0
    fused(torch.randn(1, 3, 8, 8))
    assert Counting.asked == 3  # convolution, batch norm, pooling


def test_layers_may_still_be_exchanged():
    x = torch.randn(1, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    fused = cnnfast.fuse(model)
    other = nn.Conv2d(3, 4, 3)
    fused[0] = other
    torch.testing.assert_close(fused(x), other(x).relu())
