"""Report rows of a network that was cut into plans and eager layers."""

from collections.abc import Iterable
from dataclasses import replace

from torch import fx, nn

from cnnfast.fuse.tracing import is_layer
from cnnfast.plan.lowering.context import what_is
from cnnfast.plan.owners import is_layer_like, macs_by_owner, owner_of
from cnnfast.plan.parts.cut import Cut, PlannedPart
from cnnfast.plan.record import Record
from cnnfast.plan.show import describe
from cnnfast.report import DROPPED, EAGER, FUSED, Row

_NO_WORK = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)  # in evaluation
NOT_NEEDED = "does nothing in evaluation, or is not called"


def join_paths(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def rows_of(
    module: nn.Module, path: str, graph: fx.Graph, record: Record, cut: Cut, inside: Iterable[str]
) -> list[Row]:
    """Where each layer went, and the functions that stay eager or multiply.

    inside: paths that have rows of their own.
    """
    places = {node: part for part in cut.parts for node in part.part.nodes}
    owned: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "call_function", "call_method"):
            owned.setdefault(owner_of(node, module) or "", []).append(node)
    macs = macs_by_owner(graph, module, record)
    rows = []
    for name, layer in module.named_modules():
        skipped = any(name == other or name.startswith(f"{other}.") for other in inside)
        if skipped or not is_layer_like(layer) or not (name in owned or is_layer(layer)):
            continue
        row = _layer_row(name, layer, owned.get(name, []), cut, places)
        rows.append(_placed(row, path, macs.get(name, 0)))
    for node in owned.get("", []):
        eager = node in cut.live and node not in places and node in cut.reasons
        if eager or macs.get(node.name):
            row = _row(node.name, what_is(node, module), [node], cut, places)
            rows.append(_placed(row, path, macs[node.name]))
    return rows


def _placed(row: Row, path: str, macs: int) -> Row:
    return Row(join_paths(path, row.name), row.type, row.status, row.runs_as, row.reason, macs)


def _layer_row(name: str, layer: nn.Module, nodes: list[fx.Node], cut: Cut, places: dict) -> Row:
    row = _row(name, type(layer).__name__, nodes, cut, places)
    return replace(row, status=DROPPED) if row.status == EAGER and isinstance(layer, _NO_WORK) else row


def _row(name: str, kind: str, nodes: list[fx.Node], cut: Cut, places: dict[fx.Node, PlannedPart]) -> Row:
    eager = [node for node in nodes if node in cut.live and node not in places]
    if eager:
        reasons = dict.fromkeys(cut.reasons[node] for node in eager if node in cut.reasons)
        return Row(name, kind, EAGER, reason="; ".join(reasons))
    part = next((places[node] for node in nodes if node in places), None)
    if part is None:
        return Row(name, kind, DROPPED, reason=NOT_NEEDED)
    for i, layers in enumerate(part.names):
        if name in layers.split(" + "):
            return Row(
                name, kind, FUSED, f"plan {cut.parts.index(part)}, node {i}: {describe(part.plan.nodes[i])}"
            )
    return Row(name, kind, DROPPED, reason=NOT_NEEDED)


def eager_rows(module: nn.Module, path: str, reason: str, macs: dict[str, int]) -> list[Row]:
    """Rows of a module that stays eager as a whole."""
    return [
        Row(join_paths(path, name), type(layer).__name__, EAGER, reason=reason, macs=macs.get(name, 0))
        for name, layer in module.named_modules()
        if is_layer(layer)
    ]
