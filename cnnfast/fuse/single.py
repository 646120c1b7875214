"""Convolutions and group norms that a forward which stays calls: the layer itself gets a forward."""

from dataclasses import dataclass

from torch import fx, nn

from cnnfast.fuse import builders, runtime, runtime_norm
from cnnfast.fuse.foreign import pads_to_same
from cnnfast.fuse.groups import Group
from cnnfast.fuse.kinds import why_not_live
from cnnfast.fuse.own_thread import OwnThreadTracer
from cnnfast.fuse.shells import Generated, become, source_of
from cnnfast.fuse.tracing import is_ours


@dataclass(frozen=True)
class Single:
    """Graphs of a layer's forward before and after, the nodes that have its value, and what runs."""

    eager: fx.Graph
    fused: fx.Graph
    before: str
    after: str
    operator: str


def why_not_single(layer: nn.Module) -> str | None:
    """Why a layer cannot run by itself; an empty reason for kinds that nothing would be won with."""
    if not isinstance(layer, (nn.Conv2d, nn.GroupNorm)) or is_ours(layer):
        return ""
    if pads_to_same(layer):
        return "its padding follows from the size of the image: a forward that stays calls it as it is"
    return why_not_live(layer)


def fuse_single(layer: nn.Conv2d | nn.GroupNorm) -> Single:
    """Give a layer a forward that calls its operator; its class stays in the ancestry."""
    eager = OwnThreadTracer().trace(layer)
    graph = fx.Graph()
    x = graph.placeholder("input")
    node = graph.call_module("", (x,))  # the root itself
    if isinstance(layer, nn.Conv2d):
        function, arguments = builders.conv(graph, layer, Group("conv", [node], layer=node))
        operator = "conv2d"
    else:
        _, (*arguments, _) = builders.group_norm(graph, layer, Group("group_norm", [node]))
        function = runtime_norm.group_norm_in_its_layout
        operator = "group_norm2d where images are channels_last, else torch's"
    call = graph.call_function(function, tuple(arguments))
    graph.erase_node(node)
    graph.output(graph.call_function(runtime.in_layout_of, (call, x)) if operator == "conv2d" else call)
    source, names = source_of(graph)
    become(layer, (Generated,), source, names)
    before = next(node for node in eager.nodes if node.op == "output").args[0].name
    return Single(eager, graph, before, call.name, operator)
