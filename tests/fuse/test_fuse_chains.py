"""Convolutions with 1x1 convolutions and a pool behind them, in fused networks: one call for all of them."""

import copy
import importlib

import pytest
import torch
from torch import nn

import cnnfast
from cnnfast import _ext

pytestmark = [
    pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators"),
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
]

INPUT = torch.randn(9, 3, 25, 23, generator=torch.Generator().manual_seed(0))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 1), nn.ReLU(),
        nn.Conv2d(16, 16, 1), nn.ReLU(),
        nn.Conv2d(16, 24, 1), nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(24, 12, 3, padding=1), nn.Sigmoid(),
        nn.Conv2d(12, 10, 1),
        nn.AvgPool2d(2),
    )  # fmt: skip


def step(net, autocast=True):
    input = INPUT.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = net(input)
    cotangent = torch.linspace(-1, 1, output.numel()).cos().view(output.shape).to(output.dtype)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return output, *torch.autograd.grad(output, [input, *parameters], cotangent)


def operators(call):
    with torch.profiler.profile() as profile:
        call()
    return {event.key for event in profile.key_averages() if event.key.startswith("cnnfast::")}


@pytest.fixture
def one_by_one(monkeypatch):
    """A step whose chains run layer by layer."""

    def run(net):
        with monkeypatch.context() as patched:
            patched.setattr(
                importlib.import_module("cnnfast.fuse.runtime_blocks"), "runs_as_one", lambda x: False
            )
            return step(net)

    return run


def assert_same(found, expected):
    assert torch.equal(found[0], expected[0])
    for own, true in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(own, true, rtol=2**-6, atol=2**-7 * float(true.abs().max()))


def test_report_says_what_runs_as_one():
    report = cnnfast.fuse(plain()).report()
    together = "; while training in bfloat16 one cnnfast.ops.inception: 0 + 2 + 4 + 6"
    assert report["0"].runs_as == f"cnnfast.ops.conv2d: 0 + 1{together}"
    assert report["6"].runs_as == f"cnnfast.ops.max_pool2d: 6{together}"
    assert report["1"].runs_as == "with 0" and report["10"].runs_as == "cnnfast.ops.avg_pool2d: 10"


def test_chain_trains_as_its_layers_do(one_by_one):
    fused = cnnfast.fuse(plain())
    assert_same(step(fused), one_by_one(fused))
    names = operators(lambda: step(fused))
    assert "cnnfast::inception" in names and not names & {"cnnfast::conv2d", "cnnfast::max_pool2d"}


def test_chain_in_float32_is_single_operators():
    net = plain()
    fused = cnnfast.fuse(copy.deepcopy(net))
    for own, eager in zip(step(fused, autocast=False), step(net, autocast=False), strict=True):
        torch.testing.assert_close(own, eager, rtol=1e-4, atol=1e-4)
    assert "cnnfast::inception" not in operators(lambda: step(fused, autocast=False))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert "cnnfast::inception" not in operators(lambda: fused(INPUT))


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net[6], "ceil_mode", True),
        lambda net: setattr(net[6], "stride", 1),
        lambda net: setattr(net[2], "stride", (2, 2)),
        lambda net: setattr(net[7], "dilation", (2, 2)),
        lambda net: setattr(net[2], "bias", None),
        lambda net: net[4].weight.requires_grad_(False),
    ],
    ids=["ceil_mode", "pool's stride", "stride", "dilation", "bias", "frozen weight"],
)
def test_settings_that_change_later(change, one_by_one):
    net = plain()
    fused = cnnfast.fuse(copy.deepcopy(net))
    step(fused)
    change(net)
    change(fused)
    assert_same(step(fused), one_by_one(cnnfast.fuse(net)))


def test_values_in_between_that_others_read(one_by_one):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.pool = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.MaxPool2d(2)

        def forward(self, x):
            y = self.a(x).relu()
            z = self.b(y).relu()
            return self.pool(z) + self.pool(y)

    fused = cnnfast.fuse(Net())
    assert_same(step(fused), one_by_one(fused))


def test_one_image_without_a_batch():
    net = plain()
    fused = cnnfast.fuse(copy.deepcopy(net))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fused(INPUT[0]), fused(INPUT)[0], rtol=2**-6, atol=2**-6)


def test_script_and_unfuse():
    net = plain()
    fused = cnnfast.fuse(copy.deepcopy(net))
    scripted = torch.jit.script(fused)
    torch.testing.assert_close(scripted(INPUT), fused(INPUT))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(scripted(INPUT), fused(INPUT), rtol=2**-6, atol=2**-6)
    restored = fused.unfuse()
    assert torch.equal(restored(INPUT), net(INPUT))


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1)], ids=["max", "avg"])
def test_first_layer_and_its_pool(pool, one_by_one):
    """A pool behind layers of more channels stays a call of its own."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2)]
    fused = cnnfast.fuse(nn.Sequential(*layers)).train()
    assert {"cnnfast::inception", "cnnfast::max_pool2d"} <= operators(lambda: step(fused))
    rows = fused.report()
    assert "one cnnfast.ops.inception: 0 + 2" in rows["0"].runs_as
    assert "inception" not in rows["3"].runs_as
    for at_once, apart in zip(step(fused), one_by_one(fused), strict=True):
        torch.testing.assert_close(at_once, apart, rtol=1e-2, atol=1e-2)
