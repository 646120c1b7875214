"""A plan as an ONNX graph of standard operators: one function per operation, one table.

Image sizes are those of the example, so windows and their borders are numbers: pooling with ceil_mode, which
runtimes round in different ways, becomes explicit padding.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cnnfast.export.errors import ExportError
from cnnfast.plan.nodes import ABSENT, Act, Node, Op, Plan, word_fraction
from cnnfast.plan.shapes import Shape, infer

OPSET = 17
IR_VERSION = 8  # of ONNX 1.12, which brought this opset: what older runtimes read too
_ACTIVATIONS: dict[Act, tuple[str, ...]] = {Act.NONE: (), Act.RELU: ("Relu",), Act.SIGMOID: ("Sigmoid",)}


def to_onnx(
    plan: Plan, weights: np.ndarray, names: list[str], input_shape: Shape, dynamic_batch: bool
) -> onnx.ModelProto:
    """The model of a plan with one input.

    Args:
        weights: the plan's constants, 1-D float32. names: one per node.
        input_shape: batch first. dynamic_batch: any batch size may be given.

    Raises ExportError for an operation or an activation that has no lowering here.
    """
    graph = _Graph(plan, weights, names, infer(plan, input_shape))
    for index, node in enumerate(plan.nodes):
        graph.lower(index, node)
    external = [index for index, node in enumerate(plan.nodes) if node.op is Op.INPUT]
    values = [_value_info(graph, index, "input", dynamic_batch) for index in external]
    results = [_value_info(graph, index, "output", dynamic_batch) for index in plan.outputs]
    for index, result in zip(plan.outputs, results, strict=True):
        graph.emit("Identity", [graph.values[index]], result.name, output=result.name)
    body = helper.make_graph(graph.nodes, "cnnfast", values, results, graph.initializers)
    return helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="cnnfast"
    )


def _value_info(graph: "_Graph", index: int, stem: str, dynamic_batch: bool) -> onnx.ValueInfoProto:
    several = graph.plan.outputs if stem == "output" else [n for n in graph.plan.nodes if n.op is Op.INPUT]
    name = graph.values[index] if stem == "input" else stem
    if stem == "output" and len(several) > 1:
        name = f"{stem}_{graph.plan.outputs.index(index)}"
    shape: list[Any] = list(graph.shapes[index])
    if dynamic_batch:
        images = next(node_shape[0] for node_shape in graph.shapes)
        shape[0] = "batch" if shape[0] == images else "images"  # a reshape in front may make several of one
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


class _Graph:
    """Nodes and constants as they grow; `values` has the name of each plan node's result."""

    def __init__(self, plan: Plan, weights: np.ndarray, names: list[str], shapes: list[Shape]):
        self.plan, self.weights, self.names, self.shapes = plan, weights, names, shapes
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.values: list[str] = []
        self._count = 0

    def lower(self, index: int, node: Node) -> None:
        lowering = _LOWERINGS.get(node.op)
        activation = _ACTIVATIONS.get(node.activation)
        if lowering is None or activation is None:
            what = (
                node.op.name.lower() if lowering is None else f"the activation {node.activation.name.lower()}"
            )
            raise ExportError(
                f"export: layer {self.names[index]}: {what} has no form in standard ONNX operators in this "
                'version; format="torchscript", "pt2" and "aoti" take it'
            )
        value = lowering(self, index, node, [self.values[i] for i in node.inputs])
        for operator in activation:
            value = self.emit(operator, [value], self.names[index])
        self.values.append(value)

    def emit(
        self, operator: str, inputs: list[str], name: str, *, output: str | None = None, **attributes: Any
    ) -> str:
        """Append a node; the name of its result."""
        self._count += 1
        result = output or f"value_{self._count}"
        self.nodes.append(
            helper.make_node(operator, inputs, [result], name=f"{self._count} {name}", **attributes)
        )
        return result

    def constant(self, value: np.ndarray, stem: str = "constant") -> str:
        """Append an initializer; its name."""
        name = f"{stem}_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, at: int, *shape: int, stem: str = "weight") -> str:
        """A constant of the plan."""
        count = int(np.prod(shape))
        return self.constant(self.weights[at : at + count].reshape(shape), stem)

    def image_sizes(self, index: int) -> tuple[Shape, Shape]:
        """Height and width in front of a node, and behind it."""
        return self.shapes[self.plan.nodes[index].inputs[0]][2:], self.shapes[index][2:]


def _input(graph: _Graph, index: int, node: Node, sources: list[str]) -> str:
    several = sum(other.op is Op.INPUT for other in graph.plan.nodes) > 1
    return f"input_{index}" if several else "input"


def _conv2d(graph: _Graph, index: int, node: Node, sources: list[str]) -> str:
    shape = [node[key] for key in ("out_channels", "group_channels", "kernel_h", "kernel_w")]
    operands = [sources[0], graph.weight(node["weight_at"], *shape)]
    if node["bias_at"] != ABSENT:
        operands.append(graph.weight(node["bias_at"], node["out_channels"], stem="bias"))
    value = graph.emit(
        "Conv",
        operands,
        graph.names[index],
        kernel_shape=shape[2:],
        strides=[node["stride_h"], node["stride_w"]],
        dilations=[node["dilation_h"], node["dilation_w"]],
        pads=[node[f"pad_{side}"] for side in ("top", "left", "bottom", "right")],
        group=node["groups"],
    )
    return graph.emit("Add", [value, sources[1]], graph.names[index]) if len(sources) > 1 else value


def _linear(graph: _Graph, index: int, node: Node, sources: list[str]) -> str:
    operands = [sources[0], graph.weight(node["weight_at"], node["out_features"], node["in_features"])]
    if node["bias_at"] != ABSENT:
        operands.append(graph.weight(node["bias_at"], node["out_features"], stem="bias"))
    return graph.emit("Gemm", operands, graph.names[index], transB=1)


def _pads(graph: _Graph, index: int, node: Node) -> list[int]:
    """Top, left, bottom, right: just enough for as many windows as torch takes, ceil_mode or not."""
    before, after = graph.image_sizes(index)
    starts, ends = [], []
    for axis, size, count in zip("hw", before, after, strict=True):
        pad = node[f"pad_{axis}"]
        span = node.attributes.get(f"dilation_{axis}", 1) * (node[f"kernel_{axis}"] - 1) + 1
        starts.append(pad)
        ends.append(max(0, (count - 1) * node[f"stride_{axis}"] + span - size - pad))
    return starts + ends


def _window(node: Node) -> dict[str, list[int]]:
    return {name: [node[f"{key}_h"], node[f"{key}_w"]] for name, key in _WINDOW}


_WINDOW = (("kernel_shape", "kernel"), ("strides", "stride"))


def _max_pool2d(graph: _Graph, index: int, node: Node, sources: list[str]) -> str:
    pads, value, name = _pads(graph, index, node), sources[0], graph.names[index]
    if any(pad >= node[f"kernel_{axis}"] for pad, axis in zip(pads, "hwhw", strict=True)):
        # runtimes allow no padding as wide as the kernel, which a dilated one may need
        border = graph.constant(np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64), "border")
        least = graph.constant(np.array(-np.inf, np.float32), "least")
        value, pads = graph.emit("Pad", [value, border, least], name), [0, 0, 0, 0]
    dilations = [node["dilation_h"], node["dilation_w"]]
    return graph.emit("MaxPool", [value], name, **_window(node), pads=pads, dilations=dilations)


def _avg_pool2d(graph: _Graph, index: int, node: Node, sources: list[str]) -> str:
    pads, name = _pads(graph, index, node), graph.names[index]
    taps = node["kernel_h"] * node["kernel_w"]
    divisors = _divisors(graph, index, node)
    value = graph.emit("AveragePool", [sources[0]], name, **_window(node), pads=pads, count_include_pad=1)
    if np.all(divisors == taps):
        return value
    return graph.emit("Mul", [value, graph.constant((taps / divisors).astype(np.float32), "share")], name)


def _divisors(graph: _Graph, index: int, node: Node) -> np.ndarray:
    """What torch divides the sum of each window by, as [1, 1, height, width]."""
    before, after = graph.image_sizes(index)
    if node["divisor_override"]:
        return np.full((1, 1, 1, 1), float(node["divisor_override"]))
    sides = []
    for axis, size, count in zip("hw", before, after, strict=True):
        pad = node[f"pad_{axis}"]
        starts = np.arange(count) * node[f"stride_{axis}"] - pad
        ends = np.minimum(starts + node[f"kernel_{axis}"], size + pad)
        if not node["count_include_pad"]:
            starts, ends = np.maximum(starts, 0), np.minimum(ends, size)
        sides.append((ends - starts).astype(np.float64))
    return (sides[0][:, None] * sides[1][None, :])[None, None]


def _reshape_image(graph: _Graph, index: int, node: Node, sources: list[str]) -> str:
    sizes = np.array([-1, node["channels"], node["height"], node["width"]], np.int64)
    return graph.emit("Reshape", [sources[0], graph.constant(sizes, "shape")], graph.names[index])


def _affine(graph: _Graph, index: int, node: Node, sources: list[str]) -> str:
    scale = graph.weight(node["scale_at"], 1, node["channels"], 1, 1, stem="scale")
    shift = graph.weight(node["shift_at"], 1, node["channels"], 1, 1, stem="shift")
    scaled = graph.emit("Mul", [sources[0], scale], graph.names[index])
    return graph.emit("Add", [scaled, shift], graph.names[index])


def _local_response_norm(graph: _Graph, index: int, node: Node, sources: list[str]) -> str:
    size, name = node["size"], graph.names[index]
    alpha, beta, k = (word_fraction(node[key]) for key in ("alpha", "beta", "k"))
    if size % 2:
        return graph.emit("LRN", sources, name, size=size, alpha=alpha, beta=beta, bias=k)
    # an even window lies to the other side in ONNX: written out, as torch does it
    axis = graph.constant(np.array([1], np.int64), "axis")
    squares = graph.emit("Mul", [sources[0], sources[0]], name)
    volume = graph.emit("Unsqueeze", [squares, axis], name)
    window = {"kernel_shape": [size, 1, 1], "pads": [size // 2, 0, 0, (size - 1) // 2, 0, 0]}
    means = graph.emit("AveragePool", [volume], name, **window, count_include_pad=1)
    value = graph.emit("Squeeze", [means, axis], name)
    for operator, number in (("Mul", alpha), ("Add", k), ("Pow", beta)):
        value = graph.emit(operator, [value, graph.constant(np.array(number, np.float32))], name)
    return graph.emit("Div", [sources[0], value], name)


def _plain(operator: str, **attributes: int) -> "Lowering":
    def lower(graph: _Graph, index: int, node: Node, sources: list[str]) -> str:
        return graph.emit(operator, sources, graph.names[index], **attributes)

    return lower


Lowering = Callable[[_Graph, int, Node, list[str]], str]
_LOWERINGS: dict[Op, Lowering] = {
    Op.INPUT: _input,
    Op.CONV2D: _conv2d,
    Op.LINEAR: _linear,
    Op.MAX_POOL2D: _max_pool2d,
    Op.AVG_POOL2D: _avg_pool2d,
    Op.FLATTEN: _plain("Flatten", axis=1),
    Op.RESHAPE_IMAGE: _reshape_image,
    Op.ACTIVATION: lambda graph, index, node, sources: sources[0],
    Op.ADD: _plain("Add"),
    Op.CONCAT: _plain("Concat", axis=1),
    Op.GLOBAL_AVG_POOL: _plain("GlobalAveragePool"),
    Op.AFFINE: _affine,
    Op.LOCAL_RESPONSE_NORM: _local_response_norm,
}
