"""Nodes and constants of an ONNX graph as they grow."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cnnfast.plan.nodes import Plan
from cnnfast.plan.shapes import Shape


class Graph:
    """Nodes and constants as they grow; `values` has the name of each plan node's result."""

    def __init__(self, plan: Plan, weights: np.ndarray, names: list[str], shapes: list[Shape]):
        self.plan, self.weights, self.names, self.shapes = plan, weights, names, shapes
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.values: list[str] = []
        self._count = 0

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

    def number(self, value: float) -> str:
        """A scalar constant."""
        return self.constant(np.array(value, np.float32), "number")

    def numbers(self, *values: int) -> str:
        """A list of integers as a constant."""
        return self.constant(np.array(values, np.int64), "numbers")
