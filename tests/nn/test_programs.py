"""Modules as programs: script, trace, FX, torch.compile, torch.export, copies and files."""

import copy
import io
import pickle

import pytest
import torch

import cnnfast.nn as fast

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

INPUT = torch.linspace(-3, 3, 3 * 6 * 8 * 8).sin().view(3, 6, 8, 8)

MODULES = {
    "conv_relu": (lambda: fast.ConvReLU2d(6, 9, 3, padding=1), [INPUT]),
    "conv_act_residual": (lambda: fast.ConvAct2d(6, 6, 3, padding=1, activation="sigmoid"), [INPUT, INPUT]),
    "conv_same": (lambda: fast.ConvReLU2d(6, 9, (2, 4), padding="same"), [INPUT]),
    "conv_circular": (lambda: fast.ConvReLU2d(6, 9, 3, padding=1, padding_mode="circular"), [INPUT]),
    "conv_bn_relu": (lambda: fast.ConvBNReLU2d(6, 9, 3, padding=1), [INPUT]),
    "conv_bn_residual": (lambda: fast.ConvBN2d(6, 6, 3, padding=1, bias=False), [INPUT, INPUT]),
    "conv_bn_no_affine": (lambda: fast.ConvBNReLU2d(6, 9, 3, affine=False), [INPUT]),
    "conv_bn_no_statistics": (lambda: fast.ConvBNReLU2d(6, 9, 3, track_running_stats=False), [INPUT]),
    "linear": (lambda: fast.LinearReLU(8, 5), [INPUT]),
    "max_pool": (lambda: fast.MaxPool2d(3, 2, 1), [INPUT]),
    "avg_pool": (lambda: fast.AvgPool2d(2), [INPUT]),
    "global_avg_pool": (lambda: fast.GlobalAvgPool2d(), [INPUT]),
    "reshape": (lambda: fast.ReshapeImage(6, 8, 8), [INPUT.flatten(1)]),
    "residual_block": (lambda: fast.ResidualBlock(6), [INPUT]),
    "batch_norm": (lambda: fast.BatchNormAct2d(6), [INPUT]),
    "batch_norm_residual": (lambda: fast.BatchNormAct2d(6, activation="none"), [INPUT, INPUT]),
    "bn_act_conv": (lambda: fast.BNActConv2d(6, 9, 3, padding=1), [INPUT]),
    "bn_act_conv_residual": (lambda: fast.BNActConv2d(6, 6, 3, padding=1, bias=False), [INPUT, INPUT]),
    "bn_act_conv_same": (lambda: fast.BNActConv2d(6, 9, (2, 4), padding="same"), [INPUT]),
    "bn_act_conv_no_statistics": (lambda: fast.BNActConv2d(6, 9, 3, track_running_stats=False), [INPUT]),
    "bn_act_conv_no_affine": (lambda: fast.BNActConv2d(6, 9, 3, affine=False), [INPUT]),
    "linear_bn": (lambda: fast.LinearBNAct(8, 5), [INPUT[:, 0, 0]]),
    "local_response_norm": (lambda: fast.LocalResponseNorm(3), [INPUT]),
    "inception": (lambda: fast.Inception(6, 5, (3, 7), (2, 4), 3), [INPUT]),
    "inception_a": (lambda: fast.InceptionA(6), [INPUT]),
    "residual": (lambda: fast.Residual(6, 6), [INPUT]),
    "residual_1x1": (lambda: fast.Residual(6, 9, use_1x1conv=True, stride=2), [INPUT]),
    "preact": (lambda: fast.PreActResidual(6, 6), [INPUT]),
    "preact_1x1": (lambda: fast.PreActResidual(6, 9, use_1x1conv=True, stride=2), [INPUT]),
    "dense_block": (lambda: fast.DenseBlock(3, 6, 4), [INPUT]),
    "transition": (lambda: fast.Transition(6, 4), [INPUT]),
    "nin_block": (lambda: fast.NiNBlock(6, 4, 3, 2, 1), [INPUT]),
    "vgg_block": (lambda: fast.VGGBlock(2, 6, 4), [INPUT]),
}


@pytest.fixture(params=MODULES)
def module_and_inputs(request):
    build, inputs = MODULES[request.param]
    module = build()
    module(*inputs)  # running averages other than 0 and 1
    return module, inputs


def run_in_both_modes(module, inputs):
    """Outputs in train and eval mode, and the buffers afterwards."""
    outputs = [module.train()(*inputs), module.eval()(*inputs)]
    return outputs + [b.clone() for b in module.buffers()]


def assert_same_runs(module, other, inputs):
    for own, true in zip(run_in_both_modes(other, inputs), run_in_both_modes(module, inputs), strict=True):
        torch.testing.assert_close(own, true, rtol=1e-5, atol=1e-6)


def test_module_scripts_saves_and_loads(module_and_inputs):
    module, inputs = module_and_inputs
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(copy.deepcopy(module)), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert list(loaded.state_dict()) == list(module.state_dict())
    assert_same_runs(module, loaded, inputs)


def test_scripted_conv_bn_has_a_cumulative_average_too():
    module = fast.ConvBNReLU2d(6, 9, 3, momentum=None)
    scripted = torch.jit.script(copy.deepcopy(module))
    for _ in range(3):
        input = torch.randn(2, 6, 6, 6)
        torch.testing.assert_close(scripted(input), module(input))
    torch.testing.assert_close(scripted.bn.running_var, module.bn.running_var)
    assert scripted.bn.num_batches_tracked == 3


CUMULATIVE = {
    "conv_bn": lambda: fast.ConvBNReLU2d(6, 9, 3, momentum=None),
    "batch_norm": lambda: fast.BatchNormAct2d(6, momentum=None),
    "bn_act_conv": lambda: fast.BNActConv2d(6, 9, 3, momentum=None),
    "dense_block": lambda: cumulative(fast.DenseBlock(2, 6, 4)),
}


def cumulative(module):
    for child in module.modules():
        if isinstance(child, torch.nn.BatchNorm2d):
            child.momentum = None
    return module


@pytest.mark.parametrize("program", ["compile", "trace", "fx"])
@pytest.mark.parametrize("build", CUMULATIVE.values(), ids=CUMULATIVE)
def test_cumulative_average_in_programs(build, program):
    """Its step is a tensor, so that no program holds the number of one batch."""
    module = build()
    other = copy.deepcopy(module)
    if program == "compile":
        other = torch.compile(other, fullgraph=True, backend="aot_eager")
    elif program == "trace":
        other = torch.jit.trace(other, torch.randn(2, 6, 6, 6), check_trace=False)
        other.load_state_dict(module.state_dict())
    else:
        arguments = {"residual": None} if hasattr(module, "bn") else None
        other = torch.fx.symbolic_trace(other, concrete_args=arguments)
    for _ in range(3):
        input = torch.randn(2, 6, 6, 6)
        torch.testing.assert_close(other(input), module(input), rtol=1e-5, atol=1e-5)
    for own, true in zip(other.buffers(), module.buffers(), strict=True):
        torch.testing.assert_close(own, true)


BLOCK_FUNCTIONS = {
    "inception": ["inception"],
    "inception_a": ["inception"],
    "dense_block": ["dense_layers"],
    "preact": ["bn_act_conv"] * 2,
    "preact_1x1": ["batch_norm_act", "conv_act", "conv_act", "bn_act_conv"],
    "residual": ["conv_bn_act"] * 2,
    "linear_bn": ["linear_bn_act"],
    "transition": ["bn_act_conv", "avg_pool2d"],
    "global_avg_pool": ["global_avg_pool2d"],
}


@pytest.mark.parametrize("name", BLOCK_FUNCTIONS)
def test_fx_sees_one_call_per_fused_layer(name):
    graph = torch.fx.symbolic_trace(MODULES[name][0]()).graph
    calls = [n.target.__name__ for n in graph.nodes if n.op == "call_function"]
    assert calls == BLOCK_FUNCTIONS[name]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_module_traces_in_both_modes(module_and_inputs, training):
    module, inputs = module_and_inputs
    before = copy.deepcopy(module.train(training).state_dict())
    traced = torch.jit.trace(copy.deepcopy(module), tuple(inputs), check_trace=False)
    traced.load_state_dict(before)
    torch.testing.assert_close(traced(*inputs), module(*inputs), rtol=1e-5, atol=1e-6)
    for own, true in zip(traced.buffers(), module.buffers(), strict=True):
        torch.testing.assert_close(own, true)


def test_module_traces(module_and_inputs):
    module, inputs = module_and_inputs
    module.eval()
    traced = torch.jit.trace(module, tuple(inputs))
    fewer = [t[:2] for t in inputs]
    torch.testing.assert_close(traced(*fewer), module(*fewer))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_module_fx_traces(module_and_inputs, training):
    module, inputs = module_and_inputs
    module.train(training)
    before = [b.clone() for b in module.buffers()]
    arguments = {"residual": None} if len(inputs) == 1 and hasattr(module, "conv") else None
    traced = torch.fx.symbolic_trace(module, concrete_args=arguments)
    assert all(map(torch.equal, module.buffers(), before)), "tracing alone must not count as a step"
    other = copy.deepcopy(module)
    torch.testing.assert_close(traced(*inputs), other(*inputs))
    assert all(map(torch.equal, module.buffers(), other.buffers()))


def test_module_compiles_without_graph_breaks(module_and_inputs):
    module, inputs = module_and_inputs
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    assert_same_runs(module, compiled, inputs)
    inputs = [t.clone().requires_grad_() for t in inputs]
    truth = [t.detach().clone().requires_grad_() for t in inputs]
    compiled.train()(*inputs).square().sum().backward()
    module.train()(*truth).square().sum().backward()
    for own, true in zip(inputs, truth, strict=True):
        torch.testing.assert_close(own.grad, true.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_conv_bn_compiles_with_inductor():
    module = fast.ConvBNReLU2d(6, 9, 3, padding=1)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True)
    assert_same_runs(module, compiled, [INPUT])


def test_module_exports_with_a_dynamic_batch(module_and_inputs):
    module, inputs = module_and_inputs
    module.eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(module, tuple(inputs), dynamic_shapes=[{0: batch}] * len(inputs))
    more = [torch.cat([t, t]) for t in inputs]
    torch.testing.assert_close(program.module()(*more), module(*more))


def test_module_copies_and_pickles(module_and_inputs):
    module, inputs = module_and_inputs
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(copied) == repr(module)
        assert_same_runs(copy.deepcopy(module), copied, inputs)
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1.0)
    if list(module.parameters()):
        assert not torch.equal(copied.eval()(*inputs), module.eval()(*inputs))


def test_module_prints_its_activation():
    assert "activation=sigmoid" in repr(fast.ConvAct2d(3, 4, 3, activation="sigmoid"))
    assert "out_features=5, bias=True, activation=relu" in repr(fast.LinearReLU(3, 5))
