"""Activations in standard ONNX operators."""

import math
from collections.abc import Callable

from cnnfast.export.onnx_writer import Graph
from cnnfast.plan.nodes import Act

Numbers = tuple[float, float]
Activation = Callable[[Graph, str, str, Numbers], str]  # value, layer, numbers of the activation -> value


def _plain(operator: str, **attributes: float) -> Activation:
    return lambda graph, x, name, numbers: graph.emit(operator, [x], name, **attributes)


def _with_alpha(operator: str) -> Activation:
    return lambda graph, x, name, numbers: graph.emit(operator, [x], name, alpha=numbers[0])


def _clamp(graph: Graph, x: str, name: str, numbers: Numbers) -> str:
    return graph.emit("Clip", [x, graph.number(numbers[0]), graph.number(numbers[1])], name)


def _silu(graph: Graph, x: str, name: str, numbers: Numbers) -> str:
    return graph.emit("Mul", [x, graph.emit("Sigmoid", [x], name)], name)


def _mish(graph: Graph, x: str, name: str, numbers: Numbers) -> str:
    softplus = graph.emit("Softplus", [x], name)
    return graph.emit("Mul", [x, graph.emit("Tanh", [softplus], name)], name)


def _gelu(graph: Graph, x: str, name: str, numbers: Numbers) -> str:
    share = graph.emit("Erf", [graph.emit("Mul", [x, graph.number(math.sqrt(0.5))], name)], name)
    return _half_and_half(graph, x, share, name)


def _gelu_tanh(graph: Graph, x: str, name: str, numbers: Numbers) -> str:
    square = graph.emit("Mul", [x, x], name)
    cubic = graph.emit("Mul", [square, graph.number(0.044715)], name)
    inner = graph.emit("Mul", [x, graph.emit("Add", [cubic, graph.number(1.0)], name)], name)
    scaled = graph.emit("Mul", [inner, graph.number(math.sqrt(2 / math.pi))], name)
    return _half_and_half(graph, x, graph.emit("Tanh", [scaled], name), name)


def _half_and_half(graph: Graph, x: str, share: str, name: str) -> str:
    """x / 2 * (1 + share)"""
    whole = graph.emit("Add", [share, graph.number(1.0)], name)
    half = graph.emit("Mul", [x, graph.number(0.5)], name)
    return graph.emit("Mul", [half, whole], name)


ACTIVATIONS: dict[Act, Activation] = {
    Act.NONE: lambda graph, x, name, numbers: x,
    Act.RELU: _plain("Relu"),
    Act.SIGMOID: _plain("Sigmoid"),
    Act.CLAMP: _clamp,
    Act.LEAKY_RELU: _with_alpha("LeakyRelu"),
    Act.HARDSIGMOID: _plain("HardSigmoid", alpha=1 / 6, beta=0.5),
    Act.HARDSWISH: _plain("HardSwish"),
    Act.SILU: _silu,
    Act.TANH: _plain("Tanh"),
    Act.GELU: _gelu,
    Act.GELU_TANH: _gelu_tanh,
    Act.ELU: _with_alpha("Elu"),
    Act.MISH: _mish,
}
