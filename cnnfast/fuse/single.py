"""Convolutions and norms that a forward which stays calls: the layer itself gets a forward."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx, nn

from cnnfast.fuse import builders, runtime, runtime_norm
from cnnfast.fuse.foreign import pads_to_same
from cnnfast.fuse.groups import Group
from cnnfast.fuse.kinds import why_not_live
from cnnfast.fuse.shells import Generated, become, source_of
from cnnfast.fuse.tracing import is_ours


@dataclass(frozen=True)
class Single:
    """The graph of a layer's forward, the node that has its value, and what runs."""

    fused: fx.Graph
    value: str
    operator: str


def why_not_single(layer: nn.Module, batch_norms: bool) -> str | None:
    """Why a layer cannot run by itself; an empty reason for kinds that nothing would be won with.

    batch_norms: whether these are wanted nevertheless. Where a graph updates the averages of one, too,
        PyTorch's own, which keeps them for its gradient, would take that for a change of what it kept.
    """
    kinds = (nn.Conv2d, nn.GroupNorm, *((nn.BatchNorm2d,) if batch_norms else ()))
    if not isinstance(layer, kinds) or is_ours(layer):
        return ""
    if pads_to_same(layer):
        return "its padding follows from the size of the image: a forward that stays calls it as it is"
    return why_not_live(layer)


def fuse_single(layer: nn.Conv2d | nn.GroupNorm | nn.BatchNorm2d) -> Single:
    """A forward for a layer that calls its operator."""
    graph = fx.Graph()
    x = graph.placeholder("input")
    node = graph.call_module("", (x,))  # the root itself
    function, arguments, operator = _call(graph, layer, node)
    call = graph.call_function(function, tuple(arguments))
    graph.erase_node(node)
    any_layout = isinstance(layer, nn.GroupNorm)
    graph.output(call if any_layout else graph.call_function(runtime.in_layout_of, (call, x)))
    return Single(graph, call.name, operator)


def put_in_place(single: Single, layer: nn.Module) -> None:
    """The layer calls its operator from now on."""
    become(layer, (Generated,), *source_of(single.fused))


def _call(graph: fx.Graph, layer: nn.Module, node: fx.Node) -> tuple[Callable, tuple, str]:
    """What runs for a layer, its arguments, and the operator that it is."""
    if isinstance(layer, nn.Conv2d):
        return *builders.conv(graph, layer, Group("conv", [node], layer=node)), "conv2d"
    if isinstance(layer, nn.BatchNorm2d):
        group = Group("bn", [node], batch_norm=node)
        return *builders.batch_norm(graph, layer, group), "batch_norm_act"
    _, (*arguments, _) = builders.group_norm(graph, layer, Group("group_norm", [node]))
    operator = "group_norm2d where images are channels_last, else torch's"
    return runtime_norm.group_norm_in_its_layout, tuple(arguments), operator
