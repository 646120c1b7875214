"""Finding, in a traced graph, the layers that one fused call can take over, and saying why others stay."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import fx, nn

from cnnfast.fuse.foreign import is_frozen_norm, is_standardised
from cnnfast.fuse.groups import Group, writes_between
from cnnfast.fuse.kinds import (
    PLAIN_ACTIVATIONS,
    addends,
    ending_of,
    is_ending,
    layer_name,
    module_of,
    pads_first,
    why_not_live,
    writes_in_place,
)
from cnnfast.fuse.match_blocks import join_blocks
from cnnfast.fuse.starts import OF_IMAGES, WITHOUT_STATE, start_of, why_not_function, why_not_settings
from cnnfast.fuse.tracing import is_ours

_NORMS_BEHIND = {"conv": nn.BatchNorm2d, "linear": nn.BatchNorm1d}


@dataclass
class Match:
    groups: list[Group] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # by name of the layer that stays


def find_groups(graph: fx.Graph, root: nn.Module, chosen: Callable[[str, nn.Module], bool]) -> Match:
    """All groups of a graph, in order, and for every layer beside them the reason why it stays as it is."""
    match = _Matcher(graph, root, chosen).run()
    match.groups = join_blocks(graph, root, match.groups, lambda node: chosen(node.name, root))
    return match


class _Matcher:
    def __init__(self, graph, root, chosen):
        self.root, self.chosen = root, chosen
        self.nodes = list(graph.nodes)
        self.calls: dict[nn.Module, int] = {}
        for node in self.nodes:
            if node.op == "call_module":
                module = module_of(node, root)
                self.calls[module] = self.calls.get(module, 0) + 1
        self.match = Match()
        self.taken: set[fx.Node] = set()

    def run(self) -> Match:
        for node in self.nodes:
            kind = start_of(node, self.root)
            if kind is None or node in self.taken or layer_name(node) in self.match.reasons:
                continue
            reason = self.why_not(node, shared_allowed=kind in WITHOUT_STATE)
            if reason is None:
                group = self.grow(Group(kind, [node]))
                self.taken.update(group.nodes)
                self.match.groups.append(group)
            else:
                self.match.reasons[layer_name(node)] = reason
        for node in self.nodes:
            if node.op == "call_module" and node not in self.taken:
                self.match.reasons.setdefault(node.target, self.reason_to_stay(node))
        return self.match

    def why_not(self, node: fx.Node, shared_allowed: bool = False) -> str | None:
        """Why the layer behind a node cannot be swallowed."""
        if node.op != "call_module":
            left_out = not self.chosen(node.name, self.root)
            return "left out by filter_fn" if left_out else why_not_function(node)
        module = module_of(node, self.root)
        if not self.chosen(node.target, module):
            return "left out by filter_fn"
        if self.calls[module] > 1 and not shared_allowed:
            return f"it is called {self.calls[module]} times: give every call a layer of its own"
        if node.kwargs or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
            return "it is called with other arguments than one tensor"
        return why_not_settings(module) or why_not_live(module)

    def grow(self, group: Group) -> Group:
        """Take in what follows the first layer as long as nobody else looks at the values in between."""
        if group.kind == "bn":
            return self.grow_batch_norm(group)
        if group.kind in _NORMS_BEHIND:
            group.layer = group.first
            self.take_batch_norm(group, _NORMS_BEHIND[group.kind])
        if group.kind == "conv":
            self.take_add(group)
        if group.kind in _NORMS_BEHIND or group.kind in OF_IMAGES:
            self.take_activation(group)
        return group

    def grow_batch_norm(self, group: Group) -> Group:
        """Batch norm and activation go into the convolution behind them; else a sum may be in between."""
        group.batch_norm = group.first
        self.take_activation(group)
        if group.activation in PLAIN_ACTIVATIONS and self.take_conv(group):
            group.kind = "bn_conv"
            self.take_add(group)
        elif group.activation == "none":
            self.take_add(group)
            self.take_activation(group)
        return group

    def follower(self, group: Group) -> fx.Node | None:
        users = list(group.last.users)
        alone = len(users) == 1 and users[0] not in self.taken
        if not alone or writes_between(self.nodes, group.first, users[0], self.root, group.nodes):
            return None
        return users[0]

    def take_batch_norm(self, group: Group, kind: type) -> None:
        node = self.follower(group)
        norm = module_of(node, self.root) if node is not None else None
        if not (isinstance(norm, kind) or (kind is nn.BatchNorm2d and is_frozen_norm(norm))):
            return
        reason = self.why_not(node) or self.mixed_types(group.first, node)
        if reason is not None:
            self.match.reasons[node.target] = reason
            return
        group.batch_norm = node
        group.nodes.append(node)

    def mixed_types(self, layer: fx.Node, norm: fx.Node) -> str | None:
        weight, scale = module_of(layer, self.root).weight, module_of(norm, self.root).weight
        if scale is not None and scale.dtype != weight.dtype:
            return f"its weight is {scale.dtype}, that of the convolution beside it is {weight.dtype}"
        return None

    def take_conv(self, group: Group) -> bool:
        """The convolution that reads what the batch norm gave, if it pads with equal sides of zeros alone."""
        node = self.follower(group)
        conv = module_of(node, self.root) if node is not None else None
        if not isinstance(conv, nn.Conv2d) or is_ours(conv) or pads_first(conv) or is_standardised(conv):
            return False
        if self.why_not(node) is not None or self.mixed_types(node, group.first) is not None:
            return False
        group.layer = node
        group.nodes.append(node)
        return True

    def take_add(self, group: Group) -> None:
        node = self.follower(group)
        pair = addends(node) if node is not None else None
        if pair is None or pair[0] is pair[1]:
            return
        residual = pair[1] if pair[0] is group.last else pair[0]
        written = pair[0] if writes_in_place(node, self.root) else None
        if written is residual:
            return  # the other operand would have to receive the sum
        group.add = node
        group.nodes.append(node)

    def take_activation(self, group: Group) -> None:
        node = self.follower(group)
        activation = ending_of(node, self.root) if node is not None else None
        if activation is None:
            return
        if node.op == "call_module":
            reason = self.why_not(node, shared_allowed=True)
            if reason is not None:
                self.match.reasons[node.target] = reason
                return
        group.activation, group.ending = activation, node
        group.nodes.append(node)

    def reason_to_stay(self, node: fx.Node) -> str:
        """For layers that start no group and that no group took in."""
        module = module_of(node, self.root)
        own = self.why_not(node, shared_allowed=True)
        if own is not None:
            return own
        source = node.args[0]
        if isinstance(module, nn.BatchNorm1d) or is_ending(module):
            if len(source.users) > 1:
                return f"the value in front of it ('{source.name}') is used elsewhere too"
            if source in self.taken or source.op == "call_module":
                return f"it cannot be joined to '{source.target}' in front of it"
            before = "linear" if isinstance(module, nn.BatchNorm1d) else "convolution, batch norm or linear"
            return f"there is no {before} layer directly in front of it"
        return f"no kernel for {type(module).__name__} in this version"
