"""Cutting a graph into parts that a plan can hold and the nodes between them.

A node's level counts how often the way to it changes between plans and eager nodes. Nodes of one level that
hang together are a part: every way out of it leads to a higher level, so that it can run as one call.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import fx

from cnnfast.fuse.number_nodes import is_number


@dataclass(frozen=True, eq=False)
class Part:
    """Nodes of one plan, in order."""

    nodes: tuple[fx.Node, ...]
    level: int


_SIZED_LIKE = (F.interpolate, F.pad, "expand")  # which may be told to give images as large as others


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node reads.

    Sizes are known when a plan is made, or the node has no place in one; those of larger or smaller images
    are these images themselves.
    """
    found = [value for value in node.all_input_nodes if not is_number(value)]
    if node.target in _SIZED_LIKE:
        waiting = [value for value in node.all_input_nodes if is_number(value)]
        while waiting:
            sources = waiting.pop().all_input_nodes
            waiting += [source for source in sources if is_number(source)]
            found += [source for source in sources if not is_number(source)]
    return list(dict.fromkeys(found))


def levels(
    graph: fx.Graph,
    planned: set[fx.Node],
    runs_before: dict[fx.Node, list[fx.Node]],
    constants: set[fx.Node],
) -> dict[fx.Node, int]:
    """Even numbers for planned nodes, odd ones for the others; nobody needs what has a higher level.

    constants: what plans keep for themselves.
    """
    level: dict[fx.Node, int] = {}
    for node in graph.nodes:
        plan = node in planned
        inside = [source for source in operands(node) if source not in constants]
        sources = inside if plan else [*node.all_input_nodes, *runs_before.get(node, ())]
        behind = (level[source] + ((source in planned) is not plan) for source in sources)
        level[node] = max(behind, default=-1)
        if plan:
            level[node] = max(level[node], 0)
    return level


def parts_of(graph: fx.Graph, planned: set[fx.Node], level: dict[fx.Node, int]) -> list[Part]:
    """Planned nodes of one level that hang together, in the order of levels."""
    root: dict[fx.Node, fx.Node] = {}

    def find(node: fx.Node) -> fx.Node:
        while root[node] is not node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    for node in graph.nodes:
        if node not in planned:
            continue
        root[node] = node
        for source in operands(node):
            if source in planned and level[source] == level[node]:
                root[find(source)] = find(node)
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node in planned:
            members.setdefault(find(node), []).append(node)
    made = [Part(tuple(nodes), level[nodes[0]]) for nodes in members.values()]
    return sorted(made, key=lambda part: part.level)


def read_outside(part: Part, live: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes of a part whose values others need; sizes of a value need the value."""
    inside = set(part.nodes)
    others = [node for node in live if node not in inside]
    read = {source for node in others for source in (*node.all_input_nodes, *operands(node))}
    return [node for node in part.nodes if node in read]
