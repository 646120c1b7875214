"""The plan of a network in evaluation mode."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from cnnfast.fuse.shells import has_hooks, unfused
from cnnfast.fuse.tracing import NotTraceable, is_layer, is_ours, trace
from cnnfast.plan.fold import fold
from cnnfast.plan.lowering import Lowering, Refusal
from cnnfast.plan.nodes import ANY_TILE, DIRECT, Op, Plan
from cnnfast.plan.steps import Step, reachable, to_plan
from cnnfast.report import DROPPED, FUSED, Row


class UnsupportedNetworkError(ValueError):
    """A network that no plan of this version can hold; `refusals` has the layers and reasons."""

    def __init__(self, network: str, refusals: list[Refusal]):
        self.refusals = refusals
        rows = "\n".join(f"  {refusal.name} ({refusal.what}): {refusal.reason}" for refusal in refusals)
        super().__init__(
            f"freeze: a plan of this version holds a whole network or nothing, and {network} has\n{rows}\n"
            "cnnfast.fuse(model) runs the other layers fused; freeze(..., allow_eager=True) takes a "
            "snapshot that "
            "runs eager"
        )


@dataclass(frozen=True)
class Built:
    """A plan with what reports need: a name for each node, and a row for each layer."""

    plan: Plan
    weights: Tensor
    names: list[str]
    rows: list[Row]


def build(model: nn.Module, example_inputs: tuple, winograd: bool = True) -> Built:
    """Trace, lower and fold; winograd: whether convolutions may run by Winograd's algorithm.

    Raises UnsupportedNetworkError naming every layer without a place in a plan.
    """
    network = unfused(model).eval()
    name = type(network).__name__
    if has_hooks(network):
        raise UnsupportedNetworkError(name, [Refusal(name, "the network", "it has hooks: remove them first")])
    try:
        traced = trace(network, lambda module: is_layer(module) and not is_ours(module), live_training=False)
    except NotTraceable as error:
        raise UnsupportedNetworkError(name, [Refusal(name, "the network", str(error))]) from error
    shapes = _shapes(traced.graph, network, example_inputs)
    low = Lowering(traced.graph, network, shapes, traced.closed)
    outputs = low.run()
    refusals = low.refusals + _misused_inputs(low.free_inputs, outputs)
    if refusals:
        raise UnsupportedNetworkError(name, refusals)
    outputs = fold(outputs)
    for step in reachable(outputs):
        if step.op is Op.CONV2D:
            step.settings |= {"largest_tile": ANY_TILE if winograd else DIRECT, "tuned": 0}
    plan, weights, names = to_plan(low.inputs, outputs)
    return Built(plan, weights, names, _rows(network, names, plan))


def _shapes(graph: fx.Graph, network: nn.Module, example_inputs: tuple) -> dict[fx.Node, torch.Size]:
    recorder = _ShapeRecorder(network, graph=graph)
    with torch.no_grad():
        recorder.run(*example_inputs)
    return recorder.shapes


class _ShapeRecorder(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph):
        super().__init__(module, graph=graph)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        if isinstance(result, Tensor):
            self.shapes[node] = result.shape
        return result


def _misused_inputs(free_inputs: set[Step], outputs: list[Step]) -> list[Refusal]:
    """An input of any shape can be reshaped and nothing else."""
    reason = "it reads the input as it is, which is reshaped elsewhere"
    return [
        Refusal(step.layers[0], step.op.name.lower(), reason)
        for step in reachable(outputs)
        if step.op is not Op.RESHAPE_IMAGE and free_inputs.intersection(step.inputs)
    ]


def _rows(network: nn.Module, names: list[str], plan: Plan) -> list[Row]:
    """Where each layer went."""
    runs_as = {}
    for i, (name, node) in enumerate(zip(names, plan.nodes, strict=True)):
        for layer in name.split(" + "):
            runs_as.setdefault(layer, f"node {i}: {node.op.name.lower()}")
    rows, ours = [], []
    for name, layer in network.named_modules():
        part = name.startswith(tuple(ours))  # it holds parameters for a layer of ours
        place = runs_as.get(name)
        if not is_layer(layer) or (part and place is None):
            continue
        if is_ours(layer):
            ours.append(f"{name}." if name else "")
        reason = "" if place else "does nothing in evaluation, or is not called"
        rows.append(Row(name, type(layer).__name__, FUSED if place else DROPPED, place or "", reason))
    return rows
