"""Convolutions that a forward which stays calls one by one: the layer itself gets the forward."""

from dataclasses import dataclass

from torch import fx, nn

from cnnfast.fuse import builders, runtime
from cnnfast.fuse.foreign import pads_to_same
from cnnfast.fuse.groups import Group
from cnnfast.fuse.kinds import why_not_live
from cnnfast.fuse.own_thread import OwnThreadTracer
from cnnfast.fuse.shells import Generated, become, source_of
from cnnfast.fuse.tracing import is_ours


@dataclass(frozen=True)
class Single:
    """Graphs of a layer's forward before and after, and the nodes that have its value."""

    eager: fx.Graph
    fused: fx.Graph
    before: str
    after: str


def why_not_single(layer: nn.Module) -> str | None:
    """Why a layer cannot run by itself; an empty reason for kinds that nothing would be won with."""
    if not isinstance(layer, nn.Conv2d) or is_ours(layer):
        return ""
    if pads_to_same(layer):
        return "its padding follows from the size of the image: a forward that stays calls it as it is"
    return why_not_live(layer)


def fuse_single(conv: nn.Conv2d) -> Single:
    """Give a convolution a forward that calls its operator; its class stays in the ancestry."""
    eager = OwnThreadTracer().trace(conv)
    graph = fx.Graph()
    x = graph.placeholder("input")
    node = graph.call_module("", (x,))  # the root itself
    function, arguments = builders.conv(graph, conv, Group("conv", [node], layer=node))
    call = graph.call_function(function, arguments)
    graph.erase_node(node)
    graph.output(graph.call_function(runtime.in_layout_of, (call, x)))
    source, names = source_of(graph)
    become(conv, (Generated,), source, names)
    before = next(node for node in eager.nodes if node.op == "output").args[0].name
    return Single(eager, graph, before, call.name)
