"""torch.jit.script and trace, torch.compile, torch.export and FX on fused networks."""

import io

import pytest
import torch
from torch import fx, nn

import cnnfast

from .networks import NETWORKS, images, make

CASES = pytest.mark.parametrize("name", NETWORKS)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def assert_same(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-5 * max(1.0, wanted.abs().max().item()))


def saved_and_loaded(script):
    stream = io.BytesIO()
    torch.jit.save(script, stream)
    stream.seek(0)
    return torch.jit.load(stream)


@CASES
def test_fuse_scripts(name):
    fused = cnnfast.fuse(make(name)).eval()
    x = images(name)
    with torch.no_grad():
        assert_same(saved_and_loaded(torch.jit.script(fused))(x), fused(x))


def test_fuse_script_trains():
    model = make("resnet")
    fused = cnnfast.fuse(model).train()
    script = torch.jit.script(cnnfast.fuse(make("resnet"))).train()
    script.load_state_dict(fused.state_dict())
    x = images("resnet")
    outputs = [net(x) for net in (script, fused)]
    assert_same(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for (key, a), b in zip(fused.named_parameters(), script.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-4, msg=key)
    script.eval()
    fused.eval()
    assert_same(script(x), fused(x))


class Infinite(nn.Module):
    """Infinities and NaN among the arguments."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x).clamp(-1e3, float("inf"))
        y = y.masked_fill(y > 1, float("-inf"))
        return torch.nan_to_num(y + torch.full_like(y, float("nan")), nan=0.5, neginf=2.0) + y.exp()


def test_fuse_scripts_infinities():
    fused, x = cnnfast.fuse(Infinite()).eval(), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert_same(torch.jit.script(fused)(x), fused(x))
        assert_same(fused(x), fused.unfuse()(x))
    if cnnfast._ext.AVAILABLE:
        frozen = cnnfast.freeze(fused, x)
        assert_same(torch.jit.script(frozen)(x), frozen(x))


def test_fuse_script_of_untraceable_network():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

        def forward(self, x):
            if x.sum() > 0:
                x = x * 2
            return self.part(x)

    fused = cnnfast.fuse(Net())
    x = torch.randn(2, 3, 6, 6)
    assert_same(torch.jit.script(fused)(x), fused(x))


def test_fuse_script_where_an_inlined_forward_does_not_script():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, **unused):
            return self.conv(x)

    fused = cnnfast.fuse(nn.Sequential(Odd(), nn.ReLU()))
    x = torch.randn(2, 3, 6, 6)
    assert_same(torch.jit.script(fused)(x), fused(x))


@CASES
def test_fuse_traces(name):
    fused = cnnfast.fuse(make(name)).eval()
    x = images(name)
    with torch.no_grad():
        traced = saved_and_loaded(torch.jit.trace(fused, x, check_trace=False))
        assert_same(traced(x), fused(x))


@pytest.mark.parametrize("name", ["notes", "resnet", "branches"])
def test_fuse_compiles_without_graph_breaks(name):
    torch._dynamo.reset()
    fused = cnnfast.fuse(make(name)).eval()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    for batch in (3, 5):
        x = images(name, batch)
        with torch.no_grad():
            assert_same(compiled(x), fused(x))


def test_fuse_compiled_training_step():
    torch._dynamo.reset()
    model = make("resnet")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # None reads a tensor's value, in eager PyTorch too
    twin = cnnfast.fuse(model).unfuse()
    fused = cnnfast.fuse(model).train()
    start = {key: value.clone() for key, value in fused.state_dict().items()}
    x = images("resnet")
    results = []
    for net in (torch.compile(fused, fullgraph=True, backend="aot_eager"), twin.train()):
        model.load_state_dict(start)
        model.zero_grad()
        net(x).square().sum().backward()
        results.append(([p.grad.clone() for p in model.parameters()], [b.clone() for b in model.buffers()]))
    for (key, _), a, b in zip(model.named_parameters(), results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-3, msg=key)
    for (key, _), a, b in zip(model.named_buffers(), results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=key)


@CASES
def test_fuse_exports_with_dynamic_batch(name):
    fused = cnnfast.fuse(make(name)).eval()
    program = torch.export.export(fused, (images(name),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    x = images(name, 7)
    with torch.no_grad():
        assert_same(program.module()(x), fused(x))


def test_fuse_symbolic_trace_by_fx():
    fused = cnnfast.fuse(make("resnet")).eval()
    x = images("resnet")
    with torch.no_grad():
        assert_same(fx.symbolic_trace(fused)(x), fused(x))


def test_fuse_meta_tensors():
    fused = cnnfast.fuse(make("resnet")).eval().to("meta")
    assert fused(images("resnet").to("meta")).shape == (3, 5)
