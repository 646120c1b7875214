"""In-place operations as functions: whoever reads a tensor after a write reads what the write gave.

Parts of a graph run in another order than the graph; that is right only if no value changes behind them.
"""

import operator
from collections.abc import Callable

import torch
from torch import fx, nn

from cnnfast.fuse.kinds import module_of, writes_in_place
from cnnfast.fuse.tracing import NotTraceable, is_layer
from cnnfast.plan.record import Place, Record


def read_latest(graph: fx.Graph, root: nn.Module, record: Record) -> dict[fx.Node, list[fx.Node]]:
    """Rewrite the graph in place; returns, by writing node, the nodes that have to run before it.

    Raises NotTraceable where a write is read through another view of the same memory.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    runs_before: dict[fx.Node, list[fx.Node]] = {}
    for write in list(graph.nodes):
        if not writes_in_place(write, root) or _only_says_so(write, root, record):
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


def _only_says_so(node: fx.Node, root: nn.Module, record: Record) -> bool:
    """Blocks of layers that have an `inplace` of their own and, in the run, changed nothing."""
    block = node.op == "call_module" and not is_layer(module_of(node, root))
    return block and node not in record.wrote


def _redirect(alias: fx.Node, write: fx.Node, order: dict[fx.Node, int], record: Record) -> None:
    later = [user for user in alias.users if order[user] > order[write]]
    if not later or _in_places(alias, write, record, _apart):
        return
    if not _in_places(alias, write, record, operator.eq):
        raise NotTraceable(
            f"'{write.name}' writes in place into a tensor that is read in another shape or through "
            "another view later"
        )
    for user in later:
        user.replace_input_with(alias, write)


def _in_places(alias: fx.Node, write: fx.Node, record: Record, holds: Callable[[Place, Place], bool]) -> bool:
    """Whether something holds of two tensors' places for the example, for larger and for more images."""
    runs = (record.places, record.larger_places(), record.more_places)
    return all(holds(run[alias], run[write]) for run in runs if alias in run and write in run)


def _apart(a: Place, b: Place) -> bool:
    """Whether two views of one memory have no value in common."""
    ends = [
        offset + 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        for sizes, strides, offset in (a, b)
    ]
    touched = torch.zeros(max(0, *ends), dtype=torch.bool)
    touched.as_strided(*a).fill_(True)
    return not touched.as_strided(*b).any()
