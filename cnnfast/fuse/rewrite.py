"""Putting one fused call in the place of each group of a graph."""

from torch import fx, nn

from cnnfast.fuse import builders, builders_blocks
from cnnfast.fuse.groups import Group
from cnnfast.fuse.number_nodes import is_number

_BUILDERS = {
    "conv": builders.conv,
    "linear": builders.linear,
    "bn": builders.batch_norm,
    "group_norm": builders.group_norm,
    "instance_norm": builders.instance_norm,
    "bn_conv": builders.bn_conv,
    "max_pool": builders.max_pool,
    "avg_pool": builders.avg_pool,
    "global_avg_pool": builders.global_avg_pool,
    "mean": builders.mean,
    "local_response_norm": builders.local_response_norm,
    "inception": builders_blocks.inception,
    "dense_block": builders_blocks.dense_block,
    "chain": builders_blocks.chain,
}
_OPERATORS = {
    "conv": "conv2d",
    "bn": "batch_norm2d",
    "group_norm": "group_norm2d",
    "instance_norm": "instance_norm2d",
    "bn_conv": "bn_act_conv2d",
    "max_pool": "max_pool2d",
    "avg_pool": "avg_pool2d",
    "global_avg_pool": "global_avg_pool2d",
    "mean": "global_avg_pool2d",
}


def replace_groups(graph: fx.Graph, root: nn.Module, groups: list[Group]) -> dict[fx.Node, fx.Node]:
    """Rewrite the graph in place; returns the new node of each group by the node whose value it has."""
    made = {}
    for group in groups:
        with graph.inserting_before(group.last):
            function, arguments = _BUILDERS[group.kind](graph, root, group)
            call = graph.create_node("call_function", function, arguments, {}, f"fused_{group.first.name}")
        group.last.replace_all_uses_with(call)
        made[group.last] = call
        for node in reversed(group.nodes):
            graph.erase_node(node)
    _drop_unused_sizes(graph)
    return made


def kernel_name(group: Group) -> str:
    """The public operator that serves a group."""
    if group.kind in ("conv", "linear") and group.batch_norm is not None:
        return "conv2d_bn_act"
    return _OPERATORS.get(group.kind, group.kind)


def _drop_unused_sizes(graph: fx.Graph) -> None:
    """Those that a function was called with which now is a fused call."""
    for node in reversed(graph.nodes):
        if is_number(node) and not node.users:
            graph.erase_node(node)
