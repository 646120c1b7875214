"""The plan of a network in evaluation mode."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from cnnfast.fuse.foreign import with_plain_norms
from cnnfast.fuse.shells import evaluating, has_hooks, unfused
from cnnfast.fuse.tracing import NotTraceable, is_layer, is_ours, trace
from cnnfast.plan.fold import fold
from cnnfast.plan.lowering import Lowering, Refusal
from cnnfast.plan.nodes import ANY_TILE, DIRECT, Op, Plan
from cnnfast.plan.owners import is_layer_like, is_leaf, macs_by_owner
from cnnfast.plan.record import Record, record
from cnnfast.plan.steps import Step, reachable, to_plan
from cnnfast.report import DROPPED, FUSED, Row

_IN_PARTS = "freeze without strict=True leaves them eager between plans; cnnfast.fuse(model) trains too"


class UnsupportedNetworkError(ValueError):
    """A network that no plan of this version can hold; `refusals` has the layers and reasons."""

    def __init__(self, network: str, refusals: list[Refusal], advice: str = _IN_PARTS):
        self.network, self.refusals = network, refusals
        rows = "\n".join(f"  {refusal.name} ({refusal.what}): {refusal.reason}" for refusal in refusals)
        super().__init__(
            f"freeze: {network} has layers that no plan of this version holds:\n{rows}\n{advice}"
        )

    def with_advice(self, advice: str) -> "UnsupportedNetworkError":
        return UnsupportedNetworkError(self.network, self.refusals, advice)


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
    network = with_plain_norms(evaluating(unfused(model)))
    name = type(network).__name__
    if has_hooks(network):
        raise UnsupportedNetworkError(name, [Refusal(name, "the network", "it has hooks: remove them first")])
    try:
        traced = trace(network, is_leaf, live_training=False, args=example_inputs)
        made = record(traced.graph, network, example_inputs)
    except NotTraceable as error:
        raise UnsupportedNetworkError(name, [Refusal(name, "the network", str(error))]) from error
    if traced.sizes is not None and traced.sizes.words:
        reason = f"it decides by sizes: {traced.sizes.words}; a plan by itself holds for all"
        raise UnsupportedNetworkError(name, [Refusal(name, "the network", reason)])
    if len(example_inputs) != 1:
        several = f"it takes {len(example_inputs)} arguments; a plan by itself takes one tensor"
        raise UnsupportedNetworkError(name, [Refusal(name, "the network", several)])
    if wrong := _other_than_float32(traced.graph, made):
        raise UnsupportedNetworkError(name, [wrong])
    low = Lowering(traced.graph, network, made, traced.closed)
    outputs = low.run()
    refusals = low.refusals + _misused_inputs(low.free_inputs, outputs)
    if refusals:
        raise UnsupportedNetworkError(name, refusals)
    outputs = fold(outputs)
    for step in reachable(outputs):
        if step.op is Op.CONV2D:
            step.settings |= {"largest_tile": ANY_TILE if winograd else DIRECT, "tuned": 0}
    plan, weights, names = to_plan(low.inputs, outputs)
    macs = macs_by_owner(traced.graph, network, made)
    return Built(plan, weights, names, _rows(network, names, plan, macs))


def _other_than_float32(graph: fx.Graph, made: Record) -> Refusal | None:
    """An input that is no float32 tensor; the layer that makes one of it stays eager."""
    source = next(node for node in graph.nodes if node.op == "placeholder")
    if made.dtypes.get(source) == torch.float32:
        return None
    kind = made.dtypes.get(source, "no tensor")
    return Refusal(str(source.target), "input", f"it is {kind}; a plan by itself takes a float32 tensor")


def _misused_inputs(free_inputs: set[Step], outputs: list[Step]) -> list[Refusal]:
    """An input of any shape can be reshaped and nothing else."""
    reason = "it reads the input as it is, which is reshaped elsewhere"
    return [
        Refusal(step.layers[0], step.op.name.lower(), reason)
        for step in reachable(outputs)
        if step.op is not Op.RESHAPE_IMAGE and free_inputs.intersection(step.inputs)
    ]


def _rows(network: nn.Module, names: list[str], plan: Plan, macs: dict[str, int]) -> list[Row]:
    """Where each layer went."""
    runs_as = {}
    for i, (name, node) in enumerate(zip(names, plan.nodes, strict=True)):
        for layer in name.split(" + "):
            runs_as.setdefault(layer, f"node {i}: {node.op.name.lower()}")
    rows, ours = [], []
    for name, layer in network.named_modules():
        part = name.startswith(tuple(ours))  # it holds parameters for a layer of ours
        place = runs_as.get(name)
        if not (is_layer(layer) or (place and is_layer_like(layer))) or (part and place is None):
            continue
        if is_ours(layer):
            ours.append(f"{name}." if name else "")
        reason = "" if place else "does nothing in evaluation, or is not called"
        status = FUSED if place else DROPPED
        rows.append(Row(name, type(layer).__name__, status, place or "", reason, macs.get(name, 0)))
    functions = (name for name in macs if macs[name] and all(row.name != name for row in rows))
    return rows + [Row(name, "function", FUSED, runs_as.get(name, ""), macs=macs[name]) for name in functions]
