"""From some nodes of a graph to the steps of a plan of their own."""

import torch
from torch import fx, nn

from cnnfast.fuse.number_nodes import is_number
from cnnfast.plan.lowering import Lowering
from cnnfast.plan.lowering.context import Unsupported, Value, is_constant, is_kind, steps_of
from cnnfast.plan.nodes import Op
from cnnfast.plan.parts.partition import operands
from cnnfast.plan.record import Record
from cnnfast.plan.steps import Step


class PartLowering(Lowering):
    """One walk over `nodes`; what they read from elsewhere becomes an input of the plan.

    So does what a node gives that has no place in a plan; `reasons` says which and why.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module, record: Record, closed: dict[str, str]):
        super().__init__(graph, root, record, closed)
        self.reasons: dict[fx.Node, str] = {}
        self.sources: dict[Step, fx.Node] = {}  # by input: whose value it is

    def walk(self, nodes: tuple[fx.Node, ...]) -> "PartLowering":
        for node in nodes:
            self.node = node
            try:
                self._find_operands(node)
                self._lower(node)
            except Unsupported as error:
                self.reasons[node] = str(error)
        for node in nodes:
            step = self.values.get(node)
            if isinstance(step, Step) and step.op is not Op.RESHAPE_IMAGE:
                if self.free_inputs.intersection(step.inputs):
                    self.reasons[node] = "it reads the input as it is, which is reshaped elsewhere"
        return self

    def _overwrite(self, target: fx.Node, step: Step) -> None:
        """Nothing: readers behind an in-place operation read what it gives (see versions.py)."""

    def _find_operands(self, node: fx.Node) -> None:
        """Handlers that look at sizes ask for values that are there already."""
        for value in operands(node):
            if value in self.shapes and not is_constant(value, self.root):
                self.value(value)

    def value(self, value: object) -> Value:
        """What gives a tensor argument: an input where no step of this part does."""
        if isinstance(value, fx.Node) and value not in self.values and value in self.shapes:
            if not is_constant(value, self.root):
                self.values[value], self.memory[value] = self._outside(value), value
        if isinstance(value, fx.Node) and value not in self.values and not is_number(value):
            if not is_constant(value, self.root):
                raise Unsupported(f"'{value.name}' gives several values and stays eager")
        return super().value(value)

    def _computed(self, node: fx.Node) -> object:
        if is_kind(node) and self.record.dtypes.get(node.args[0]) != torch.float32:
            raise Unsupported(f"its '{node.args[1]}' is that of a tensor which is not float32")
        return super()._computed(node)

    def _outside(self, value: fx.Node) -> Value:
        shape, dtype = self.shapes[value], self.record.dtypes[value]
        line = len(shape) == 3 and self.reads_lines(self.node)
        if dtype != torch.float32 or not (line or len(shape) in (2, 4)):
            raise Unsupported(
                f"its input '{value.name}' is {dtype} of shape {list(shape)}; a plan reads float32 images "
                "(N, C, H, W), lines (N, C, L) of layers that know no other tensors, or features (N, F)"
            )
        if not self.record.follows.get(value, True):
            raise Unsupported(
                f"its input '{value.name}' of shape {list(shape)} has another first dimension than the batch"
            )
        given = self.external(len(shape))
        (step,) = steps_of(given)
        self.sources[step] = value
        self.place(step, self.name_of(value))
        return given
