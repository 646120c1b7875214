"""The function and arguments of each fused call but those of blocks."""

from collections.abc import Callable

from torch import fx, nn

from cnnfast import ops
from cnnfast.fuse import runtime, runtime_norm, runtime_same, runtime_settings
from cnnfast.fuse.foreign import is_frozen_norm, is_standardised, pads_to_same
from cnnfast.fuse.functions import VALUES
from cnnfast.fuse.groups import Group
from cnnfast.fuse.kinds import image_mean, module_of, numbers_of
from cnnfast.fuse.pool_arguments import avg_pool_arguments, max_pool_arguments
from cnnfast.nn._holders import split_padding

Call = tuple[Callable, tuple]
_NORM = (
    "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
    "training", "track_running_stats", "momentum", "eps",
)  # fmt: skip
_INSTANCE_NORM = (
    "weight", "bias", "running_mean", "running_var", "training", "track_running_stats", "momentum", "eps",
)  # fmt: skip
# What a frozen norm is in terms of BatchNorm2d.
_FROZEN = {"num_batches_tracked": None, "training": False, "track_running_stats": True, "momentum": 0.1}


class Layer:
    """Attributes of one layer, as values read when the forward runs."""

    def __init__(self, graph: fx.Graph, root: nn.Module, node: fx.Node):
        self.graph, self.path, self.module = graph, node.target, module_of(node, root)
        self.values = node.meta.get(VALUES)  # of a function

    def __getitem__(self, attribute: str) -> fx.Node:
        if self.values is not None:
            return self.values[attribute]
        return self.graph.create_node("get_attr", f"{self.path}.{attribute}" if self.path else attribute)

    def pair(self, attribute: str) -> fx.Node:
        """An attribute that is a pair, or one number for both."""
        value = self[attribute]
        if isinstance(getattr(self.module, attribute), tuple):
            return value
        return self.graph.call_function(runtime_settings.both_sides, (value,))

    def weight(self) -> fx.Node:
        """What a convolution multiplies by: computed in front of it where that is what its layer does."""
        if not is_standardised(self.module):
            return self["weight"]
        scaled = hasattr(self.module, "gain")
        gain, scale = (self["gain"], self["scale"]) if scaled else (None, 1.0)
        arguments = (self["weight"], gain, scale, self["eps"])
        return self.graph.call_function(runtime_same.standardised_weight, arguments)

    def sides(self, source: fx.Node, dilated: bool = True) -> fx.Node:
        """Left, right, top, bottom of a window that pads by the size of its input."""
        dilation = self.pair("dilation") if dilated else [1, 1]
        window = (self.pair("kernel_size"), self.pair("stride"), dilation)
        return self.graph.call_function(runtime_same.same_sides, (source, *window))

    def pads(self, source: fx.Node) -> tuple[fx.Node | list[int], fx.Node | list[int]]:
        """What torch.nn.functional.pad adds in front of a convolution, and what its operator pads with."""
        if not pads_to_same(self.module):
            return list(split_padding(self.module)[0]), self.padding()
        sides = self.sides(source)
        return tuple(
            self.graph.call_function(part, (sides,)) for part in (runtime_same.uneven, runtime_same.even)
        )

    def padding(self) -> fx.Node | list[int]:
        """What a convolution's operator pads with; words become numbers here."""
        if self.module.padding_mode != "zeros" or isinstance(self.module.padding, str):
            return list(split_padding(self.module)[1])
        if self.values is not None:
            return self["padding"]
        arguments = (self["padding"], self["padding_mode"])
        return self.graph.call_function(runtime_settings.zeros_around, arguments)

    def pad_mode(self) -> fx.Node | str:
        """How torch.nn.functional.pad calls what a convolution pads with."""
        mode = self.module.padding_mode
        if mode == "zeros" and not isinstance(self.module.padding, str):
            return "constant"  # what padding() gives makes sure of it
        return self.graph.call_function(runtime_settings.mode_as_fused, (self["padding_mode"], mode))


def norm_values(graph: fx.Graph, root: nn.Module, node: fx.Node) -> tuple[fx.Node, ...]:
    """Tensors and settings of a batch norm, in the order in which runtime functions take them."""
    layer = Layer(graph, root, node)
    fixed = _FROZEN if is_frozen_norm(layer.module) else {}
    return tuple(fixed[name] if name in fixed else layer[name] for name in _NORM)


def activation(graph: fx.Graph, root: nn.Module, group: Group) -> fx.Node | str:
    """What a call ends with; the numbers of a layer are those that it has when the forward runs."""
    if group.ending is None or group.ending.op != "call_module":
        return group.activation
    layer = Layer(graph, root, group.ending)
    if isinstance(layer.module, nn.GELU):
        return graph.call_function(runtime_settings.gelu, (layer["approximate"],))
    names = numbers_of(layer.module)
    if not names:
        return group.activation
    then = [float(getattr(layer.module, name)) for name in names]
    now = [graph.call_function(float, (layer[name],)) for name in names]
    return graph.call_function(runtime_settings.activation_with, (group.activation, then, now))


def conv(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    layer = Layer(graph, root, group.layer)
    first, padding = layer.pads(group.source)
    settings = (
        first,
        layer.pad_mode(),
        layer["stride"],
        padding,
        layer["dilation"],
        layer["groups"],
        activation(graph, root, group),
    )
    head = (group.source, group.residual, layer.weight(), layer["bias"])
    if group.batch_norm is None:
        return runtime.conv, (*head, *settings)
    return runtime.conv_bn, (*head, *norm_values(graph, root, group.batch_norm), *settings)


def linear(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    layer = Layer(graph, root, group.layer)
    head = (group.source, layer["weight"], layer["bias"])
    if group.batch_norm is None:
        return ops.linear, (*head, activation(graph, root, group))
    norm = norm_values(graph, root, group.batch_norm)
    return runtime_norm.linear_bn, (*head, *norm, activation(graph, root, group))


def batch_norm(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    norm = norm_values(graph, root, group.batch_norm)
    return runtime_norm.bn, (group.source, group.residual, *norm, activation(graph, root, group))


def group_norm(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    ending = activation(graph, root, group)
    if group.first.op == "call_function":
        return runtime_norm.group_norm, (*_group_norm(*group.first.args, **group.first.kwargs), ending)
    norm = Layer(graph, root, group.first)
    values = (norm[name] for name in ("num_groups", "weight", "bias", "eps"))
    return runtime_norm.group_norm, (group.source, *values, ending)


def _group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True) -> tuple:
    return input, num_groups, weight, bias, eps


def instance_norm(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    ending = activation(graph, root, group)
    if group.first.op == "call_function":
        arguments = _instance_norm(*group.first.args, **group.first.kwargs)
        return runtime_norm.instance_norm_function, (*arguments, ending)
    norm = Layer(graph, root, group.first)
    values = (norm[name] for name in _INSTANCE_NORM)
    return runtime_norm.instance_norm, (group.source, *values, ending)


def _instance_norm(
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
) -> tuple:
    return input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps


def bn_conv(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    layer = Layer(graph, root, group.layer)
    settings = (layer["stride"], layer.padding(), layer["dilation"], layer["groups"], group.activation)
    norm = norm_values(graph, root, group.batch_norm)
    head = (group.source, group.residual, layer["weight"], layer["bias"])
    return runtime_norm.bn_conv, (*head, *norm, *settings)


def max_pool(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    if group.first.op == "call_function":
        return runtime.max_pool, max_pool_arguments(*group.first.args, **group.first.kwargs)
    pool = Layer(graph, root, group.first)
    pairs = [pool.pair(name) for name in ("kernel_size", "stride", "padding", "dilation")]
    source = group.source
    if pads_to_same(pool.module):
        source = graph.call_function(runtime_same.padded_with_least, (source, pool.sides(source)))
    return runtime.max_pool, (source, *pairs, pool["ceil_mode"])


def avg_pool(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    if group.first.op == "call_function":
        return runtime.avg_pool, avg_pool_arguments(*group.first.args, **group.first.kwargs)
    pool = Layer(graph, root, group.first)
    pairs = [pool.pair(name) for name in ("kernel_size", "stride", "padding")]
    rest = [pool[name] for name in ("ceil_mode", "count_include_pad", "divisor_override")]
    source = group.source
    if pads_to_same(pool.module):
        sides = pool.sides(source, dilated=False)
        source = graph.call_function(runtime_same.padded_with_zeros, (source, sides))
    return runtime.avg_pool, (source, *pairs, *rest)


def global_avg_pool(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    module = group.first.op == "call_module"
    size = Layer(graph, root, group.first).pair("output_size") if module else [1, 1]
    return runtime.global_avg_pool, (group.source, size)


def mean(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    return runtime.image_mean, (group.source, *image_mean(group.first))


def local_response_norm(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    if group.first.op == "call_function":
        return runtime_norm.lrn, _lrn_arguments(*group.first.args, **group.first.kwargs)
    norm = Layer(graph, root, group.first)
    fractions = (graph.call_function(float, (norm[name],)) for name in ("alpha", "beta", "k"))
    return runtime_norm.lrn, (group.source, norm["size"], *fractions)


def _lrn_arguments(input, size, alpha=1e-4, beta=0.75, k=1.0) -> tuple:
    return input, size, float(alpha), float(beta), float(k)
