"""Layers that are one operator while training in bfloat16 on a CPU: as the layers one after the other."""

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

import cnnfast
import cnnfast.nn as fast
from cnnfast import _ext, models
from cnnfast.nn._as_one import run_blocks, runs_as_one

pytestmark = pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")

INPUT = torch.linspace(-2, 2, 9 * 4 * 23 * 21).sin().view(9, 4, 23, 21)


@pytest.fixture
def block():
    torch.manual_seed(0)
    return fast.NiNBlock(4, 24, 5, 2, 1)


def step(net, call=None, dtype=torch.bfloat16):
    """The output and all gradients of a step under autocast."""
    input = INPUT.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = (call or net)(input)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    cotangent = torch.linspace(-1, 1, output.numel()).cos().view(output.shape).to(output.dtype)
    return output, *torch.autograd.grad(output, [input, *parameters], cotangent)


def one_by_one(layers):
    def call(x):
        for layer in layers:
            x = layer(x)
        return x

    return call


def operators(call):
    with torch.profiler.profile() as profile:
        call()
    return {event.key for event in profile.key_averages() if event.key.startswith("cnnfast::")}


def assert_close(found, expected):
    for own, true in zip(found, expected, strict=True):
        assert own.dtype == true.dtype
        torch.testing.assert_close(own, true, rtol=2**-6, atol=2**-7 * float(true.detach().abs().max()))


def test_block(block):
    assert_close(step(block), step(block, one_by_one(block)))
    names = operators(lambda: step(block))
    assert "cnnfast::inception" in names and "cnnfast::conv2d" not in names


def test_block_of_bfloat16_parameters(block):
    block.bfloat16()
    input = INPUT.bfloat16()
    names = operators(lambda: block(input))
    assert "cnnfast::inception" in names and "cnnfast::conv2d" not in names
    torch.testing.assert_close(block(input), one_by_one(block)(input), rtol=2**-6, atol=2**-7)


@pytest.mark.parametrize("case", ["float32", "float16", "evaluation"])
def test_block_elsewhere_is_its_layers(block, case):
    if case == "evaluation":
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            names = operators(lambda: block(INPUT))
    else:
        names = operators(lambda: step(block, dtype=getattr(torch, case)))
    assert "cnnfast::inception" not in names


def test_hook_on_a_layer_and_on_its_convolution(block):
    seen = []
    for place, module in enumerate((block[1], block[2].conv)):
        handle = module.register_forward_hook(lambda m, args, output, n=place: seen.append(n) or output * 2)
        assert_close(step(block), step(block, one_by_one(block)))
        handle.remove()
    assert seen == [0, 0, 1, 1]
    assert "cnnfast::inception" in operators(lambda: step(block))


@pytest.mark.parametrize(
    "change",
    [
        lambda block: setattr(block[1].conv, "stride", (2, 2)),
        lambda block: setattr(block[1], "activation", "sigmoid"),
        lambda block: block.append(nn.Conv2d(24, 5, 1)),
        lambda block: block.insert(1, fast.ConvReLU2d(24, 24, 3, padding=1, padding_mode="reflect")),
        lambda block: block.insert(1, fast.ConvReLU2d(24, 24, 3, padding=2, dilation=2)),
        lambda block: block.__setitem__(2, fast.ConvBNReLU2d(24, 5, 1)),
        lambda block: block[2].conv.weight.requires_grad_(False),
    ],
    ids=["stride", "activation", "longer", "reflection", "dilation", "batch norm", "frozen weight"],
)
def test_changed_block(block, change):
    change(block)
    assert_close(step(block), step(block, one_by_one(block)))


def test_traces_and_scripts_keep_the_layers(block):
    targets = [node.target for node in symbolic_trace(block).graph.nodes if node.op == "call_function"]
    assert [getattr(target, "__name__", "") for target in targets] == 3 * ["conv_act"]
    with pytest.warns(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        traced = torch.jit.trace(block, INPUT)
    assert "inception" not in str(traced.inlined_graph)
    with pytest.warns():
        scripted = torch.jit.script(block)
    assert_close(step(scripted), step(block, one_by_one(block)))


def test_compiled_block(block):
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    assert_close(step(block, compiled), step(block, one_by_one(block)))


def blocks_and_pools():
    torch.manual_seed(0)
    return nn.ModuleList(
        [fast.NiNBlock(4, 16, 5, 2, 1), fast.MaxPool2d(3, 2), nn.Tanh(), fast.NiNBlock(16, 8, 3, 1, 1)]
    )


def test_pools_behind_blocks():
    layers = blocks_and_pools()
    joined = lambda x: run_blocks(layers, fast.NiNBlock, x)  # noqa: E731
    assert_close(step(layers, joined), step(layers, one_by_one(layers)))
    assert "cnnfast::max_pool2d" not in operators(lambda: step(layers, joined))


@pytest.mark.parametrize("hooked", [0, 1])
def test_hook_on_a_block_or_its_pool(hooked):
    layers, seen = blocks_and_pools(), []
    layers[hooked].register_forward_hook(lambda m, args, output: seen.append(output.shape) or output * 2)
    joined = lambda x: run_blocks(layers, fast.NiNBlock, x)  # noqa: E731
    assert_close(step(layers, joined), step(layers, one_by_one(layers)))
    assert len(seen) == 2 and seen[0] == seen[1]


def test_pool_with_settings_that_a_stage_has_not():
    layers = blocks_and_pools()
    layers[1].ceil_mode = True
    assert_close(
        step(layers, lambda x: run_blocks(layers, fast.NiNBlock, x)), step(layers, one_by_one(layers))
    )


def test_network_in_network():
    torch.manual_seed(0)
    net = models.nin()
    input = torch.rand(1, 1, 224, 224)
    with torch.autocast("cpu", torch.bfloat16):
        names = operators(lambda: net(input))
    assert "cnnfast::inception" in names and not names & {"cnnfast::conv2d", "cnnfast::max_pool2d"}


def test_whether_layers_run_as_one():
    image = torch.zeros(1, 1, 2, 2)
    half = image.bfloat16()
    assert runs_as_one(half) and not runs_as_one(image) and not runs_as_one(half[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert runs_as_one(image) and not runs_as_one(image.double())
    with torch.autocast("cpu", torch.float16):
        assert not runs_as_one(image)
    with torch.no_grad():
        assert not runs_as_one(half)
    assert not runs_as_one(half.to("meta"))
    assert cnnfast.nn.NiNBlock(1, 2, 1)(image).shape == (1, 2, 2, 2)


FIRST_LAYERS = {
    "lenet": 28,
    "residual_net": 28,
    "inception_net": 28,
    "alexnet": 224,
    "googlenet": 96,
    "vgg11_small": 224,
}


@pytest.mark.parametrize("name", FIRST_LAYERS)
def test_first_layer_and_its_pool(name, monkeypatch):
    torch.manual_seed(0)
    net = getattr(models, name)().eval()  # dropout would draw twice
    images = torch.rand(2, 1, FIRST_LAYERS[name], FIRST_LAYERS[name])
    first = next(layer for layer in net.modules() if isinstance(layer, nn.Conv2d))

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(images).float().square().sum()
        return torch.autograd.grad(loss, [first.weight, first.bias])

    assert "cnnfast::inception_backward" in operators(run)
    at_once = run()
    monkeypatch.setattr("cnnfast.nn._as_one.runs_as_one", lambda input: False)
    if name not in ("inception_net", "googlenet"):
        assert "cnnfast::inception_backward" not in operators(run)
    for own, apart in zip(at_once, run(), strict=True):
        torch.testing.assert_close(own, apart, rtol=2**-6, atol=2**-7 * float(apart.abs().max()))
    torch.testing.assert_close(torch.jit.script(net)(images), net(images), rtol=1e-4, atol=1e-4)


def test_hook_between_a_first_layer_and_its_pool():
    net = models.lenet()
    seen = []
    net.conv1.register_forward_hook(lambda *args: seen.append(args))
    with torch.autocast("cpu", torch.bfloat16):
        names = operators(lambda: net(torch.rand(2, 1, 28, 28)))
    assert seen and "cnnfast::inception" not in names
