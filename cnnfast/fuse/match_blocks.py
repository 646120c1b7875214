"""Joining groups to whole blocks: branches that are concatenated, and dense blocks.

A block is one operator, whose parts write their channels straight into its output.
"""

from collections.abc import Callable

from torch import fx, nn

from cnnfast.fuse.foreign import is_standardised
from cnnfast.fuse.groups import Group, writes_between
from cnnfast.fuse.kinds import PLAIN_ACTIVATIONS, concatenated, is_written, module_of, pads_first
from cnnfast.fuse.pool_arguments import is_plain_pool


def join_blocks(
    graph: fx.Graph, root: nn.Module, groups: list[Group], chosen: Callable[[fx.Node], bool]
) -> list[Group]:
    """The groups, those of a block replaced by the block; chosen: of concatenations."""
    joiner = _Joiner(graph, root, groups)
    for node in graph.nodes:
        tensors = concatenated(node)
        if tensors is not None and chosen(node):
            joiner.join(node, tensors)
    return joiner.groups()


class _Joiner:
    def __init__(self, graph: fx.Graph, root: nn.Module, groups: list[Group]):
        self.root = root
        self.nodes = list(graph.nodes)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.by_value = {group.last: group for group in groups}

    def groups(self) -> list[Group]:
        return sorted(self.by_value.values(), key=lambda group: self.position[group.first])

    def join(self, concat: fx.Node, tensors: list[fx.Node]) -> None:
        block = self.dense_block(concat, tensors) or self.inception(concat, tensors)
        # A block's gradient reads its output.
        written = block is not None and is_written(concat, self.root)
        if (
            block is None
            or written
            or writes_between(self.nodes, block.first, concat, self.root, block.nodes)
        ):
            return
        for node in block.nodes:
            self.by_value.pop(node, None)
        self.by_value[concat] = block

    # x, then what a layer makes of it, behind it; layer by layer

    def dense_block(self, concat: fx.Node, tensors: list[fx.Node]) -> Group | None:
        if len(tensors) != 2 or not self.is_only_read_by(tensors[1], concat):
            return None
        source, layer = tensors[0], self.by_value.get(tensors[1])
        if layer is None or not self.is_dense_layer(layer) or layer.source is not source:
            return None
        before = self.by_value.get(source)
        extends = (
            before is not None
            and before.kind == "dense_block"
            and before.activation == layer.activation
            and set(source.users) == {layer.first, concat}
        )
        layers = [*before.branches[0], layer] if extends else [layer]
        nodes = [*before.nodes, *layer.nodes, concat] if extends else [*layer.nodes, concat]
        return Group("dense_block", nodes, activation=layer.activation, branches=[layers])

    def is_dense_layer(self, group: Group) -> bool:
        if group.kind != "bn_conv" or group.add is not None:
            return False
        conv = module_of(group.layer, self.root)
        same_size = conv.padding == "same" or conv.padding == tuple(k // 2 for k in conv.kernel_size)
        odd = all(k % 2 == 1 for k in conv.kernel_size)
        return odd and same_size and conv.stride == conv.dilation == (1, 1) and conv.groups == 1

    # chains of convolutions and pools that begin at one value

    def inception(self, concat: fx.Node, tensors: list[fx.Node]) -> Group | None:
        if len(tensors) < 2 or not all(isinstance(tensor, fx.Node) for tensor in tensors):
            return None
        chains = [self.chain(tensor, concat) for tensor in tensors]
        stages = [group for _, chain in chains for group in chain]
        one_source = len({source for source, _ in chains}) == 1
        once = len({group.last for group in stages}) == len(stages)
        if not (one_source and once and any(group.kind == "conv" for group in stages)):
            return None
        nodes = sorted((node for group in stages for node in group.nodes), key=self.position.__getitem__)
        return Group("inception", [*nodes, concat], branches=[chain for _, chain in chains])

    def chain(self, value: fx.Node, reader: fx.Node) -> tuple[fx.Node, list[Group]]:
        """Where the branch that ends with a value begins, and its stages."""
        stages: list[Group] = []
        while is_stage(self.by_value.get(value), self.root) and self.is_only_read_by(value, reader):
            stages.insert(0, self.by_value[value])
            reader, value = stages[0].first, stages[0].source
        return value, stages

    def is_only_read_by(self, value: object, reader: fx.Node) -> bool:
        return isinstance(value, fx.Node) and set(value.users) == {reader}


def is_stage(group: Group | None, root: nn.Module) -> bool:
    """Whether the operator of Inception blocks has such a stage."""
    if group is None or group.batch_norm is not None or group.add is not None:
        return False
    if group.kind == "conv" and group.activation in PLAIN_ACTIVATIONS:
        conv = module_of(group.layer, root)
        return conv.dilation == (1, 1) and not pads_first(conv) and not is_standardised(conv)
    return group.kind in ("max_pool", "avg_pool") and is_plain_pool(group, root)
