"""A plan as an ONNX graph of standard operators.

Image sizes are those of the example, so windows and their borders are numbers: pooling with ceil_mode, which
runtimes round in different ways, becomes explicit padding.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from cnnfast.export.errors import ExportError
from cnnfast.export.onnx_activations import ACTIVATIONS
from cnnfast.export.onnx_operations import LOWERINGS, input_name
from cnnfast.export.onnx_writer import Graph
from cnnfast.plan.nodes import Node, Op, Plan
from cnnfast.plan.shapes import Shape, infer

OPSET = 17
IR_VERSION = 8  # of ONNX 1.12, which brought this opset: what older runtimes read too


def to_onnx(
    plan: Plan, weights: np.ndarray, names: list[str], input_shape: Shape, dynamic_batch: bool
) -> onnx.ModelProto:
    """The model of a plan with one input.

    Args:
        weights: the plan's constants, 1-D float32. names: one per node.
        input_shape: batch first. dynamic_batch: any batch size may be given.

    Raises ExportError for an operation or an activation that has no lowering here.
    """
    graph = Graph(plan, weights, names, infer(plan, input_shape))
    for index, node in enumerate(plan.nodes):
        _lower(graph, index, node)
    external = [index for index, node in enumerate(plan.nodes) if node.op is Op.INPUT]
    values = [_value_info(graph, index, "input", dynamic_batch) for index in external]
    results = [_value_info(graph, index, "output", dynamic_batch) for index in plan.outputs]
    for index, result in zip(plan.outputs, results, strict=True):
        graph.emit("Identity", [graph.values[index]], result.name, output=result.name)
    body = helper.make_graph(graph.nodes, "cnnfast", values, results, graph.initializers)
    return helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="cnnfast"
    )


def _value_info(graph: Graph, index: int, stem: str, dynamic_batch: bool) -> onnx.ValueInfoProto:
    several = graph.plan.outputs if stem == "output" else [n for n in graph.plan.nodes if n.op is Op.INPUT]
    name = input_name(graph, index) if stem == "input" else stem
    if stem == "output" and len(several) > 1:
        name = f"{stem}_{graph.plan.outputs.index(index)}"
    shape: list[Any] = list(graph.shapes[index])
    if graph.plan.takes_lines(index):
        del shape[2]
    if dynamic_batch:
        images = next(node_shape[0] for node_shape in graph.shapes)
        shape[0] = "batch" if shape[0] == images else "images"  # a reshape in front may make several of one
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _lower(graph: Graph, index: int, node: Node) -> None:
    lowering, activation = LOWERINGS.get(node.op), ACTIVATIONS.get(node.activation)
    if lowering is None or activation is None:
        name = node.op.name if lowering is None else f"the activation {node.activation.name}"
        raise ExportError(
            f"export: layer {graph.names[index]}: {name.lower()} has no form in standard ONNX operators in "
            'this version; format="torchscript", "pt2" and "aoti" take it'
        )
    value = lowering(graph, index, node, [graph.values[i] for i in node.inputs])
    graph.values.append(activation(graph, value, graph.names[index], node.numbers))
