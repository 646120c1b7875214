"""What the search for fused calls finds."""

from dataclasses import dataclass, field

from torch import fx, nn

from cnnfast.fuse.kinds import writes_in_place


@dataclass
class Group:
    """Nodes that become one call, first to last.

    kind: conv and linear, with the batch norm, sum and activation behind them; bn, a batch norm with a sum
        and an activation; group_norm and instance_norm, with an activation; bn_conv, a batch norm and an
        activation with the convolution behind them and a sum; max_pool, avg_pool, global_avg_pool, mean and
        local_response_norm by themselves; inception, dense_block and chain, made of such groups.
    """

    kind: str
    nodes: list[fx.Node]
    layer: fx.Node | None = None  # the convolution or linear layer
    batch_norm: fx.Node | None = None
    add: fx.Node | None = None
    activation: str = "none"
    ending: fx.Node | None = None  # that of the activation
    branches: list[list["Group"]] = field(default_factory=list)  # of a block; some have one alone

    @property
    def first(self) -> fx.Node:
        return self.nodes[0]

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def source(self) -> fx.Node:
        """What the first layer reads."""
        return self.first.args[0]

    @property
    def residual(self) -> fx.Node | None:
        """The other operand of the sum."""
        return next((arg for arg in self.add.args if arg not in self.nodes), None) if self.add else None


def writes_between(
    nodes: list[fx.Node], first: fx.Node, last: fx.Node, root: nn.Module, own: list[fx.Node]
) -> bool:
    """Whether a foreign node changes tensors in place before `last`, where the fused call will stand."""
    between = nodes[nodes.index(first) + 1 : nodes.index(last)]
    return any(writes_in_place(other, root) for other in between if other not in own)
