"""Plans as ONNX graphs: the values of ONNX Runtime and of ONNX's own evaluator are torch's."""

import copy

import numpy as np
import pytest
import torch
from freeze.plan_interpreter import run as run_plan
from fuse.networks import NETWORKS, images, make
from torch import nn

from cnnfast.export.errors import ExportError
from cnnfast.plan.build import build
from cnnfast.plan.nodes import Act, Node, Op, Plan, fraction_word

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
graphs = pytest.importorskip("cnnfast.export.onnx_graph")


def by_onnxruntime(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.contiguous().numpy()})


def by_reference(model, x):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, {"input": x.contiguous().numpy()})


ENGINES = [by_onnxruntime, by_reference]


def model_of(built, x, dynamic_batch=True):
    model = graphs.to_onnx(built.plan, built.weights.numpy(), built.names, tuple(x.shape), dynamic_batch)
    onnx.checker.check_model(model, full_check=True)
    return model


def assert_values(got, wanted, relative=1e-5):
    assert got.dtype == np.float32 and got.shape == tuple(wanted.shape)
    largest = max(wanted.abs().max().item(), 1e-3)
    torch.testing.assert_close(
        torch.from_numpy(got).double(), wanted.double(), rtol=0, atol=relative * largest
    )


def truth(network, x):
    with torch.no_grad():
        return copy.deepcopy(network).double().eval()(x.double())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_networks_for_several_batches(name, engine):
    network = make(name)
    model = model_of(build(network, (images(name, 2),)), images(name, 2))
    for batch in (1, 5):
        x = images(name, batch)
        (got,) = engine(model, x)
        assert_values(got, truth(network, x))


def test_onnx_uses_standard_operators_alone():
    for name in NETWORKS:
        model = model_of(build(make(name), (images(name),)), images(name))
        assert {node.domain for node in model.graph.node} == {""}
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)] and not model.functions


def test_onnx_names_layers_and_folds_batch_norm():
    model = model_of(build(make("resnet"), (images("resnet"),)), images("resnet"))
    kinds = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in kinds and kinds.count("Conv") == 6
    assert any("stage.0.conv1" in node.name for node in model.graph.node)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param == "batch" and [d.dim_value for d in dims[1:]] == [3, 17, 20]


def test_onnx_with_a_fixed_batch():
    x = images("lenet", 2)
    model = model_of(build(make("lenet"), (x,)), x, dynamic_batch=False)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    with pytest.raises(Exception, match=r"[Dd]imension|INVALID_ARGUMENT"):
        by_onnxruntime(model, images("lenet", 3))


POOLS = [
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(2, 2, ceil_mode=True),
    nn.MaxPool2d((3, 2), (2, 3), (1, 0), ceil_mode=True),
    nn.MaxPool2d(2, 3, 1, ceil_mode=True),  # its last window would start in the padding
    nn.MaxPool2d(2, 5, ceil_mode=True),
    nn.MaxPool2d(2, 1, 1, dilation=3),
    nn.MaxPool2d(2, 4, 0, dilation=3, ceil_mode=True),  # more padding at the end than the kernel is wide
    nn.AvgPool2d(3, 2, 1),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    nn.AvgPool2d(2, 3, 1, ceil_mode=True),
    nn.AvgPool2d((2, 3), 2, (1, 1), divisor_override=7),
    nn.AvgPool2d(3, 2, ceil_mode=True, divisor_override=2),
    nn.AvgPool2d((4, 5), 1),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: repr(pool).replace(" ", ""))
def test_onnx_pools(pool, engine):
    for height, width in ((9, 11), (10, 8)):
        x = torch.randn(2, 3, height, width) - 3  # a zero of the padding would be the maximum
        network = nn.Sequential(nn.Conv2d(3, 3, 1), pool)
        (got,) = engine(model_of(build(network, (x,)), x), x)
        assert_values(got, truth(network, x))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_onnx_local_response_norm(size, engine):
    if engine is by_reference and size % 2:
        pytest.skip(
            "onnx 1.23 normalises as many channels as there are images (onnx/reference/ops/op_lrn.py)"
        )
    x = 3 * torch.randn(2, 7, 4, 5)
    network = nn.Sequential(nn.LocalResponseNorm(size, alpha=0.3, beta=0.6, k=1.5), nn.Conv2d(7, 2, 1))
    (got,) = engine(model_of(build(network, (x,)), x), x)
    assert_values(got, truth(network, x))


def test_onnx_reshaped_input():
    """A network may make images of flat rows, or several images of one."""
    for network, x in (
        (nn.Sequential(nn.Unflatten(1, (2, 4, 5)), nn.Conv2d(2, 3, 3)), torch.randn(3, 40)),
        (Halves(), torch.randn(3, 2, 4, 10)),
    ):
        model = model_of(build(network, (x,)), x)
        for batch in (x, x[:1]):
            assert_values(by_onnxruntime(model, batch)[0], truth(network, batch))


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, x):
        return self.conv(x.view(-1, 1, 4, 10))


def test_onnx_every_operation_of_a_plan_has_a_form_or_an_error(monkeypatch):
    """Whatever operations a plan may have: those without a form are named."""
    assert set(graphs._LOWERINGS) <= set(Op) and set(graphs._ACTIVATIONS) <= set(Act)
    nodes = (Node(Op.INPUT, (), {"rank": 4, "channels": 1}), Node(Op.ACTIVATION, (0,), {}, Act.SIGMOID))
    plan, weights, names = Plan(nodes, (1,)), np.zeros(0, np.float32), ["x", "features.7"]
    monkeypatch.delitem(graphs._ACTIVATIONS, Act.SIGMOID)
    with pytest.raises(ExportError, match=r"features\.7: the activation sigmoid .*torchscript"):
        graphs.to_onnx(plan, weights, names, (1, 1, 2, 2), True)
    monkeypatch.delitem(graphs._LOWERINGS, Op.ACTIVATION)
    with pytest.raises(ExportError, match=r"features\.7: activation has no form"):
        graphs.to_onnx(plan, weights, names, (1, 1, 2, 2), True)


def test_onnx_several_outputs():
    """A plan may give several values; the interpreter says which."""
    weights = torch.randn(64)
    attributes = {"scale_at": 0, "shift_at": 16, "channels": 3}
    norm = {"size": 3, "alpha": fraction_word(0.5), "beta": fraction_word(0.75), "k": fraction_word(1.0)}
    nodes = (
        Node(Op.INPUT, (), {"rank": 4, "channels": 3}),
        Node(Op.AFFINE, (0,), attributes, Act.RELU),
        Node(Op.LOCAL_RESPONSE_NORM, (1,), norm),
        Node(Op.ADD, (1, 2), {}),
        Node(Op.CONCAT, (3, 0), {}, Act.SIGMOID),
        Node(Op.GLOBAL_AVG_POOL, (4,), {}),
        Node(Op.FLATTEN, (5,), {}),
    )
    plan, x = Plan(nodes, (6, 3)), torch.randn(2, 3, 4, 5)
    model = graphs.to_onnx(plan, weights.numpy(), [f"n{i}" for i in range(7)], tuple(x.shape), True)
    onnx.checker.check_model(model, full_check=True)
    for got, wanted in zip(by_onnxruntime(model, x), run_plan(plan, weights, [x]), strict=True):
        assert_values(got, wanted)
