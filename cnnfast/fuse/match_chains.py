"""Joining groups to chains: a convolution, 1x1 convolutions behind it and perhaps a max pool, as Network in
Network has them; a first convolution, which reads images of few channels, and the pool behind it.

A chain is one operator while training in bfloat16 on a CPU, and else runs group by group.
"""

from torch import fx, nn

from cnnfast.fuse.groups import Group, writes_between
from cnnfast.fuse.kinds import is_written, module_of
from cnnfast.fuse.match_blocks import is_stage
from cnnfast.nn._as_one import FIRST_CHANNELS


def join_chains(graph: fx.Graph, root: nn.Module, groups: list[Group]) -> list[Group]:
    """The groups, those of a chain replaced by the chain."""
    nodes = list(graph.nodes)
    by_first = {group.first: group for group in groups}
    joined, inside = [], set()
    for group in groups:
        if group.first in inside:
            continue
        chain = _chain_from(group, by_first, root)
        own = [node for part in chain for node in part.nodes]
        written = is_written(own[-1], root) or writes_between(nodes, own[0], own[-1], root, own)
        if len(chain) > 1 and not written:
            inside.update(part.first for part in chain)
            group = Group("chain", own, branches=[chain])
        joined.append(group)
    return joined


def _chain_from(group: Group, by_first: dict[fx.Node, Group], root: nn.Module) -> list[Group]:
    """The group and those behind it, with a pool where one of them is 1x1 or the first is a first layer."""
    chain = [group]
    if group.kind != "conv" or not is_stage(group, root):
        return chain
    while (behind := _only_reader(chain[-1], by_first)) is not None and _is_pointwise(behind, root):
        chain.append(behind)
    pools = ("max_pool",) if len(chain) > 1 else ("max_pool", "avg_pool") if _is_first(group, root) else ()
    if behind is not None and behind.kind in pools and is_stage(behind, root):
        chain.append(behind)
    return chain


def _is_first(group: Group, root: nn.Module) -> bool:
    """Whether, as a rule, nobody wants the gradient of its input, and the weight's is little work."""
    return module_of(group.layer, root).in_channels <= FIRST_CHANNELS


def _only_reader(group: Group, by_first: dict[fx.Node, Group]) -> Group | None:
    users = list(group.last.users)
    reader = by_first.get(users[0]) if len(users) == 1 else None
    return reader if reader is not None and reader.source is group.last else None


def _is_pointwise(group: Group, root: nn.Module) -> bool:
    if group.kind != "conv" or not is_stage(group, root):
        return False
    conv = module_of(group.layer, root)
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding in ((0, 0), "same", "valid")
