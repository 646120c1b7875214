"""In-place operations as functions: whoever reads a tensor after a write reads what the write gave.

Parts of a graph run in another order than the graph; that is right only if no value changes behind them.
"""

import torch
from torch import fx, nn

from cnnfast.fuse.kinds import writes_in_place
from cnnfast.fuse.tracing import NotTraceable
from cnnfast.plan.record import Record


def read_latest(graph: fx.Graph, root: nn.Module, record: Record) -> dict[fx.Node, list[fx.Node]]:
    """Rewrite the graph in place; returns, by writing node, the nodes that have to run before it.

    Raises NotTraceable where a write is read through another view of the same memory.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    runs_before: dict[fx.Node, list[fx.Node]] = {}
    for write in list(graph.nodes):
        if not writes_in_place(write, root):
            continue
        target = write.args[0] if write.args and isinstance(write.args[0], fx.Node) else None
        if target is None or write.kwargs.get("out") is not None or write not in record.memory:
            raise NotTraceable(f"'{write.name}' writes into something other than its first argument")
        earlier = []
        for alias in [node for node, memory in record.memory.items() if memory == record.memory[write]]:
            earlier += [user for user in alias.users if order[user] < order[write]]
            if alias is not write and order[alias] < order[write]:
                _redirect(alias, write, order, record)
        runs_before[write] = earlier
    return runs_before


def _redirect(alias: fx.Node, write: fx.Node, order: dict[fx.Node, int], record: Record) -> None:
    later = [user for user in alias.users if order[user] > order[write]]
    if not later:
        return
    whole = record.shapes[alias] == record.shapes[write] and alias.target not in _REORDERING
    if not whole:
        raise NotTraceable(
            f"'{write.name}' writes in place into a tensor that is read in another shape later"
        )
    for user in later:
        user.replace_input_with(alias, write)


_REORDERING = ("transpose", "permute", "flip", torch.transpose, torch.permute, "t", torch.t, "mT", "T")
