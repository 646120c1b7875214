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
    assert set(graphs.LOWERINGS) == set(Op) and set(graphs.ACTIVATIONS) == set(Act)
    nodes = (Node(Op.INPUT, (), {"rank": 4, "channels": 1}), Node(Op.ACTIVATION, (0,), {}, Act.SIGMOID))
    plan, weights, names = Plan(nodes, (1,)), np.zeros(0, np.float32), ["x", "features.7"]
    monkeypatch.delitem(graphs.ACTIVATIONS, Act.SIGMOID)
    with pytest.raises(ExportError, match=r"features\.7: the activation sigmoid .*torchscript"):
        graphs.to_onnx(plan, weights, names, (1, 1, 2, 2), True)
    monkeypatch.delitem(graphs.LOWERINGS, Op.ACTIVATION)
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


def by_every_engine(plan, weights, inputs):
    """One input and one output, by the engines and by the interpreter; a batch of one more, too."""
    names = [f"layer_{i}" for i in range(len(plan.nodes))]
    model = graphs.to_onnx(plan, weights.numpy(), names, tuple(inputs.shape), True)
    onnx.checker.check_model(model, full_check=True)
    for x in (inputs, torch.cat([inputs, inputs[:1] * 0.5])):
        (wanted,) = run_plan(plan, weights, [x])
        for engine in ENGINES:
            assert_values(engine(model, x)[0], wanted)


def chain(*nodes, channels=8, rank=4):
    """A plan of operations one behind the other."""
    nodes = (Node(Op.INPUT, (), {"rank": rank, "channels": channels}), *nodes)
    return Plan(nodes, (len(nodes) - 1,))


@pytest.mark.parametrize("activation", Act, ids=lambda act: act.name.lower())
def test_onnx_activations(activation):
    numbers = {Act.CLAMP: (-0.5, 1.5), Act.LEAKY_RELU: (0.2, 0.0), Act.ELU: (0.7, 0.0)}
    node = Node(Op.ACTIVATION, (0,), {}, activation, numbers.get(activation, (0.0, 0.0)))
    by_every_engine(chain(node), torch.zeros(0), 4 * torch.randn(2, 8, 5, 6))


def sized(op, height, width):
    return Node(op, (0,), {"height": height, "width": width})


def interpolated(mode, corners=0, size=(0, 0), scales=(0.0, 0.0)):
    scale_h, scale_w = map(fraction_word, scales)
    names = ("mode", "align_corners", "height", "width", "scale_h", "scale_w")
    return Node(Op.INTERPOLATE, (0,), dict(zip(names, (mode, corners, *size, scale_h, scale_w), strict=True)))


def normalised(op, **attributes):
    values = {"weight_at": 0, "bias_at": 16, "channels": 8, "eps": fraction_word(1e-3)}
    return Node(op, (0,), values | attributes)


OPERATIONS = {
    "slice": Node(Op.SLICE, (0,), {"first": 2, "channels": 3}),
    "channel_shuffle": Node(Op.CHANNEL_SHUFFLE, (0,), {"groups": 4}),
    "adaptive_avg_even": sized(Op.ADAPTIVE_AVG_POOL2D, 3, 2),
    "adaptive_avg": sized(Op.ADAPTIVE_AVG_POOL2D, 4, 7),
    "adaptive_avg_own_size": sized(Op.ADAPTIVE_AVG_POOL2D, 0, 3),
    "adaptive_max_even": sized(Op.ADAPTIVE_MAX_POOL2D, 1, 5),
    "adaptive_max": sized(Op.ADAPTIVE_MAX_POOL2D, 4, 7),
    "pad": Node(Op.PAD, (0,), {"top": 1, "left": 2, "bottom": 0, "right": 3, "value": fraction_word(-1.5)}),
    "nearest": interpolated(0, size=(7, 15)),
    "nearest_scale": interpolated(0, scales=(2.0, 1.7)),
    "nearest_exact": interpolated(1, size=(5, 13)),
    "bilinear": interpolated(2, size=(11, 7)),
    "bilinear_corners": interpolated(2, 1, size=(11, 7)),
    "bilinear_scale": interpolated(2, scales=(1.3, 2.0)),
    "layer_norm": normalised(Op.LAYER_NORM),
    "layer_norm_plain": normalised(Op.LAYER_NORM, weight_at=-1, bias_at=-1),
    "group_norm": normalised(Op.GROUP_NORM, groups=4),
    "group_norm_plain": normalised(Op.GROUP_NORM, groups=2, weight_at=-1, bias_at=-1),
    "prelu": Node(Op.PRELU, (0,), {"slope_at": 16, "channels": 8}),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_onnx_operations(name):
    by_every_engine(chain(OPERATIONS[name]), torch.randn(32), torch.randn(2, 8, 6, 10))


def test_onnx_operations_of_rows():
    """Norms and slopes over features, a row as an image of one pixel."""
    nodes = (
        Node(Op.AFFINE, (0,), {"scale_at": 0, "shift_at": 16, "channels": 8}),
        Node(Op.LAYER_NORM, (1,), {"weight_at": 0, "bias_at": 16, "channels": 8, "eps": fraction_word(1e-5)}),
        Node(Op.PRELU, (2,), {"slope_at": 16, "channels": 8}),
        Node(Op.TO_IMAGE, (3,)),
    )
    by_every_engine(chain(*nodes, rank=2), torch.randn(32), torch.randn(3, 8))


def test_onnx_broadcast_sums_and_products():
    """A squeeze-and-excitation: a factor and a sum per channel, a third operand."""
    nodes = (
        Node(Op.GLOBAL_AVG_POOL, (0,), {}, Act.HARDSIGMOID),
        Node(Op.MULTIPLY, (0, 1), {}, Act.SILU),
        Node(Op.ADD, (2, 1)),
        Node(Op.MULTIPLY, (3, 0, 2)),
        Node(Op.INTERPOLATE, (1, 4), interpolated(0).attributes),
        Node(Op.ADD, (4, 5)),
    )
    by_every_engine(chain(*nodes), torch.zeros(0), torch.randn(2, 8, 4, 5))
