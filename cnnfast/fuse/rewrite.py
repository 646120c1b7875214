"""Putting one fused call in the place of each group of a graph."""

from collections.abc import Callable

from torch import fx, nn

from cnnfast import ops
from cnnfast.fuse import runtime
from cnnfast.fuse.kinds import module_of
from cnnfast.fuse.match import Group
from cnnfast.nn._holders import pad_mode, split_padding

Call = tuple[Callable, tuple]
_KERNELS = {"linear": "linear", "max_pool": "max_pool2d", "avg_pool": "avg_pool2d"}


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
    return made


def kernel_name(group: Group) -> str:
    """The public operator that serves a group."""
    if group.kind == "conv":
        return "conv2d" if group.batch_norm is None else "conv2d_bn_act"
    return _KERNELS[group.kind]


class _Layer:
    """Attributes of one layer, as values read when the forward runs."""

    def __init__(self, graph: fx.Graph, root: nn.Module, node: fx.Node):
        self.graph, self.path, self.module = graph, node.target, module_of(node, root)

    def __getitem__(self, attribute: str) -> fx.Node:
        return self.graph.create_node("get_attr", f"{self.path}.{attribute}")

    def pair(self, attribute: str) -> fx.Node | list[fx.Node]:
        """An attribute that is a pair, or one number for both."""
        value = self[attribute]
        return value if isinstance(getattr(self.module, attribute), tuple) else [value, value]


def _conv(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    conv = _Layer(graph, root, group.first)
    pad_first, padding = split_padding(conv.module)
    live = conv.module.padding_mode == "zeros" and not isinstance(conv.module.padding, str)
    settings = (
        list(pad_first),
        pad_mode(conv.module),
        conv["stride"],
        conv["padding"] if live else list(padding),
        conv["dilation"],
        conv["groups"],
        group.activation,
    )
    head = (group.first.args[0], group.residual, conv["weight"], conv["bias"])
    if group.batch_norm is None:
        return runtime.conv, (*head, *settings)
    norm = _Layer(graph, root, group.batch_norm)
    names = (
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
        "training", "track_running_stats", "momentum", "eps",
    )  # fmt: skip
    return runtime.conv_bn, (*head, *(norm[name] for name in names), *settings)


def _linear(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    layer = _Layer(graph, root, group.first)
    return ops.linear, (group.first.args[0], layer["weight"], layer["bias"], group.activation)


def _max_pool(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    if group.first.op == "call_function":
        return runtime.max_pool, _max_pool_arguments(*group.first.args, **group.first.kwargs)
    pool = _Layer(graph, root, group.first)
    pairs = [pool.pair(name) for name in ("kernel_size", "stride", "padding", "dilation")]
    return runtime.max_pool, (group.first.args[0], *pairs, pool["ceil_mode"])


def _avg_pool(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    if group.first.op == "call_function":
        return runtime.avg_pool, _avg_pool_arguments(*group.first.args, **group.first.kwargs)
    pool = _Layer(graph, root, group.first)
    pairs = [pool.pair(name) for name in ("kernel_size", "stride", "padding")]
    rest = [pool[name] for name in ("ceil_mode", "count_include_pad", "divisor_override")]
    return runtime.avg_pool, (group.first.args[0], *pairs, *rest)


def _max_pool_arguments(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> tuple:
    """The arguments of F.max_pool2d as those of runtime.max_pool."""
    stride = kernel_size if stride in (None, [], ()) else stride
    return input, *map(_two, (kernel_size, stride, padding, dilation)), ceil_mode


def _avg_pool_arguments(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
) -> tuple:
    """The arguments of F.avg_pool2d as those of runtime.avg_pool."""
    stride = kernel_size if stride in (None, [], ()) else stride
    return input, *map(_two, (kernel_size, stride, padding)), ceil_mode, count_include_pad, divisor_override


def _two(size: int | list[int] | tuple[int, ...]) -> list[int]:
    sizes = [size] if isinstance(size, int) else list(size)
    return sizes * 2 if len(sizes) == 1 else sizes


_BUILDERS = {"conv": _conv, "linear": _linear, "max_pool": _max_pool, "avg_pool": _avg_pool}
