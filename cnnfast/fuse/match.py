"""Finding, in a traced graph, the layers that one fused call can take over, and saying why others stay."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.fuse.kinds import (
    ACTIVATION_MODULES,
    activation_of,
    addends,
    layer_name,
    module_of,
    why_not_live,
    writes_in_place,
)
from cnnfast.fuse.tracing import is_ours

_POOL_FUNCTIONS = {
    F.max_pool2d: "max_pool",
    torch.max_pool2d: "max_pool",
    F.avg_pool2d: "avg_pool",
}
_STARTS = {nn.Conv2d: "conv", nn.Linear: "linear", nn.MaxPool2d: "max_pool", nn.AvgPool2d: "avg_pool"}


@dataclass
class Group:
    """Nodes that become one call, first to last."""

    kind: str  # conv, linear, max_pool, avg_pool
    nodes: list[fx.Node]
    batch_norm: fx.Node | None = None
    add: fx.Node | None = None
    activation: str = "none"

    @property
    def first(self) -> fx.Node:
        return self.nodes[0]

    @property
    def residual(self) -> fx.Node | None:
        """The other operand of the sum."""
        return next((arg for arg in self.add.args if arg not in self.nodes), None) if self.add else None

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


@dataclass
class Match:
    groups: list[Group] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # by name of the layer that stays


def find_groups(graph: fx.Graph, root: nn.Module, chosen: Callable[[str, nn.Module], bool]) -> Match:
    """All groups of a graph, in order, and for every layer beside them the reason why it stays as it is."""
    return _Matcher(graph, root, chosen).run()


class _Matcher:
    def __init__(self, graph, root, chosen):
        self.root, self.chosen = root, chosen
        self.nodes = list(graph.nodes)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.calls: dict[nn.Module, int] = {}
        for node in self.nodes:
            if node.op == "call_module":
                module = module_of(node, root)
                self.calls[module] = self.calls.get(module, 0) + 1
        self.match = Match()
        self.taken: set[fx.Node] = set()

    def run(self) -> Match:
        for node in self.nodes:
            kind = self.kind(node)
            if kind is None:
                continue
            reason = self.why_not(node, shared_allowed=kind.endswith("pool"))
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

    def kind(self, node: fx.Node) -> str | None:
        if node.op == "call_function":
            return _POOL_FUNCTIONS.get(node.target)
        module = module_of(node, self.root)
        if module is None or is_ours(module):
            return None
        return next((kind for cls, kind in _STARTS.items() if isinstance(module, cls)), None)

    def why_not(self, node: fx.Node, shared_allowed: bool = False) -> str | None:
        """Why the layer behind a node cannot be swallowed."""
        if node.op == "call_function":
            return self.why_not_function(node)
        module = module_of(node, self.root)
        if not self.chosen(node.target, module):
            return "left out by filter_fn"
        if self.calls[module] > 1 and not shared_allowed:
            return f"it is called {self.calls[module]} times: give every call a layer of its own"
        if getattr(module, "return_indices", False):
            return "it returns indices too"
        if node.kwargs or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
            return "it is called with other arguments than one tensor"
        return why_not_live(module)

    def why_not_function(self, node: fx.Node) -> str | None:
        if not self.chosen(node.name, self.root):
            return "left out by filter_fn"
        if len(node.all_input_nodes) != 1 or not isinstance(node.args[0], fx.Node):
            return "its window is computed in the forward: write it as a number"
        return "it returns indices too" if node.kwargs.get("return_indices") else None

    def grow(self, group: Group) -> Group:
        """Take in what follows the first layer as long as nobody else looks at the values in between."""
        if group.kind == "conv":
            self.take_batch_norm(group)
            self.take_add(group)
        if group.kind in ("conv", "linear"):
            self.take_activation(group)
        return group

    def follower(self, group: Group) -> fx.Node | None:
        users = list(group.last.users)
        return users[0] if len(users) == 1 and not self.written_between(group, users[0]) else None

    def written_between(self, group: Group, node: fx.Node) -> bool:
        """Whether a foreign node changes tensors in place before `node`, where the fused call will stand."""
        between = self.nodes[self.position[group.first] + 1 : self.position[node]]
        return any(writes_in_place(other, self.root) for other in between if other not in group.nodes)

    def take_batch_norm(self, group: Group) -> None:
        node = self.follower(group)
        if node is None or not isinstance(module_of(node, self.root), nn.BatchNorm2d):
            return
        reason = self.why_not(node) or self.mixed_types(group.first, node)
        if reason is not None:
            self.match.reasons[node.target] = reason
            return
        group.batch_norm = node
        group.nodes.append(node)

    def mixed_types(self, first: fx.Node, norm: fx.Node) -> str | None:
        weight, scale = module_of(first, self.root).weight, module_of(norm, self.root).weight
        if scale is not None and scale.dtype != weight.dtype:
            return f"its weight is {scale.dtype}, that of the convolution in front is {weight.dtype}"
        return None

    def take_add(self, group: Group) -> None:
        node = self.follower(group)
        pair = addends(node) if node is not None else None
        if pair is None or pair[0] is pair[1]:
            return
        residual = pair[1] if pair[0] is group.last else pair[0]
        written = pair[0] if writes_in_place(node, self.root) else None
        if written is residual or node in self.taken:
            return  # the other operand would have to receive the sum
        group.add = node
        group.nodes.append(node)

    def take_activation(self, group: Group) -> None:
        node = self.follower(group)
        activation = activation_of(node, self.root) if node is not None else None
        if activation is None:
            return
        if node.op == "call_module":
            reason = self.why_not(node, shared_allowed=True)
            if reason is not None:
                self.match.reasons[node.target] = reason
                return
        group.activation = activation
        group.nodes.append(node)

    def reason_to_stay(self, node: fx.Node) -> str:
        """For layers that start no group and that no group took in."""
        module = module_of(node, self.root)
        own = self.why_not(node, shared_allowed=True)
        if own is not None:
            return own
        source = node.args[0]
        if isinstance(module, nn.BatchNorm2d) or type(module) in ACTIVATION_MODULES:
            if len(source.users) > 1:
                return f"the value in front of it ('{source.name}') is used elsewhere too"
            if source in self.taken or source.op == "call_module":
                return f"it cannot be joined to '{source.target}' in front of it"
            return "there is no convolution or linear layer directly in front of it"
        return f"no kernel for {type(module).__name__} in this version"
