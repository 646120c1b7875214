"""Layers that pad by the size of the image, or standardise their weight: fused, live, with gradients."""

import copy

import pytest
import torch
from torch import nn

import cnnfast

from .networks import liven
from .support import check, compare_steps, operators

layers = pytest.importorskip("timm.layers", reason="timm is not installed: pip install '.[zoo]'")
pools = pytest.importorskip("timm.layers.pool2d_same")
SIZES = [(8, 9), (11, 14), (16, 16)]


class Same(nn.Module):
    """Convolutions behind pools, in front of norms, behind norms, with a sum, and in branches."""

    def __init__(self):
        super().__init__()
        conv = layers.Conv2dSame
        self.stem, self.bn, self.act = conv(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.SiLU()
        self.max, self.avg = pools.MaxPool2dSame(3, 1), pools.AvgPool2dSame(2, 1)
        self.depthwise = conv(8, 8, (5, 2), groups=8)
        self.norm, self.last = nn.BatchNorm2d(8), conv(8, 8, 3, dilation=2)
        self.a, self.b = conv(8, 4, 2), nn.Conv2d(8, 6, 1)

    def forward(self, x):
        x = self.max(self.act(self.bn(self.stem(x))))
        x = x + self.depthwise(self.avg(x))
        x = torch.relu(self.last(torch.relu(self.norm(x))) + x)
        return torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x)), self.max(x)], 1)


@pytest.mark.parametrize("size", SIZES)
def test_fuse_same_padding(size):
    torch.manual_seed(0)
    fused = check(Same(), torch.randn(2, 3, *size))
    found = operators(fused)
    assert found["stem"] == "conv2d_bn_act" and found["depthwise"] == found["last"] == "conv2d"
    assert found["max"] == "max_pool2d" and found["avg"] == "avg_pool2d" and found["norm"] == "batch_norm2d"
    assert "padded by torch where opposite sides differ" in fused.report()["stem"].runs_as
    assert not fused.report().left_out


def test_same_padding_follows_the_size_in_scripts_and_traces():
    torch.manual_seed(0)
    model = liven(Same()).eval()
    fused = cnnfast.fuse(copy.deepcopy(model)).eval()
    traced = torch.jit.trace(fused, torch.randn(2, 3, *SIZES[0]))
    for made in (torch.jit.script(fused), traced, copy.deepcopy(fused)):
        for size in SIZES:
            x = torch.randn(1, 3, *size)
            torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(fused.unfuse()(x), model(x)) and type(fused.unfuse().stem) is layers.Conv2dSame


@pytest.mark.parametrize("kind", ["StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"])
def test_fuse_standardised_weights(kind):
    torch.manual_seed(0)
    cls = getattr(layers, kind)
    made = [cls(3, 8, 3, stride=2), nn.GELU(), nn.BatchNorm2d(8), nn.ReLU(), cls(8, 6, 3, groups=2)]
    model = nn.Sequential(*made, nn.BatchNorm2d(6), nn.ReLU())
    fused = check(model, torch.randn(2, 3, 11, 12))
    found = operators(fused)
    assert found["0"] == "conv2d" and found["4"] == "conv2d_bn_act"
    assert "weight standardised by torch at every call" in fused.report()["0"].runs_as
    assert set(fused.state_dict()) == set(model.state_dict())
    x = torch.randn(1, 3, 9, 9)
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.5)
    fused.train()(x).square().sum().backward()
    optimizer.step()
    fused.eval()
    torch.testing.assert_close(fused(x), fused.unfuse()(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.jit.script(fused)(x), fused(x))


def test_known_layers_with_hooks_or_another_forward_stay():
    torch.manual_seed(0)

    class Doubled(layers.ScaledStdConv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(layers.Conv2dSame(3, 4, 3, stride=2), Doubled(4, 5, 3), nn.ReLU())
    model[0].register_forward_hook(lambda module, args, result: result + 1)
    fused, x = cnnfast.fuse(model), torch.randn(2, 3, 9, 10)
    assert not operators(fused)
    assert "it has hooks" in fused.report()["0"].reason and "forward" in fused.report()["1"].reason
    compare_steps(fused, model, x)


def test_same_padding_in_programs_of_any_size():
    torch.manual_seed(0)
    model = liven(Same()).eval()
    fused = cnnfast.fuse(model).eval()
    sides = {0: torch.export.Dim("batch"), 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(
            fused, (torch.randn(2, 3, 16, 18),), dynamic_shapes=(sides,), strict=False
        )
        for x in (torch.randn(5, 3, 20, 22), torch.randn(3, 3, 16, 18)):
            torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
    graph = torch.fx.symbolic_trace(fused)
    for size in SIZES:
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)
