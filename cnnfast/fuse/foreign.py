"""Layers of other packages that are known by name: what they are in terms of torch.nn."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

_FROZEN_NORMS = ("torchvision.ops.misc.FrozenBatchNorm2d",)
_AS_TORCH = ("timm.layers.linear.Linear",)  # a forward of their own that computes what torch.nn's does
_NORMS_WITH_ACTIVATION = ("timm.layers.norm_act.BatchNormAct2d",)
# Padded by the size of the image, as TensorFlow does it; the last two only where they say so.
_SAME_CONVS = (
    "timm.layers.conv2d_same.Conv2dSame",
    "timm.layers.std_conv.StdConv2dSame",
    "timm.layers.std_conv.ScaledStdConv2dSame",
)
_SAME_POOLS = ("timm.layers.pool2d_same.MaxPool2dSame", "timm.layers.pool2d_same.AvgPool2dSame")
# Convolutions by a weight whose filters are shifted and scaled to mean 0 and variance 1, or gain and scale.
_STANDARDISED = tuple(
    f"timm.layers.std_conv.{name}"
    for name in ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")
)


def _name_of(module: nn.Module) -> str:
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}"


def is_frozen_norm(module: object) -> bool:
    """A batch norm whose weight, bias and statistics are buffers, which training leaves alone."""
    return isinstance(module, nn.Module) and _name_of(module) in _FROZEN_NORMS


def is_as_torch(module: object) -> bool:
    """A subclass of a layer of torch.nn whose forward computes the same."""
    return isinstance(module, nn.Module) and _name_of(module) in _AS_TORCH


def is_norm_act(module: object) -> bool:
    """A BatchNorm2d with children `drop` and `act` that it calls behind itself."""
    return isinstance(module, nn.BatchNorm2d) and _name_of(module) in _NORMS_WITH_ACTIVATION


def pads_to_same(module: object) -> bool:
    """A convolution or pooling with just the padding that ceil(size / stride) positions need."""
    if not isinstance(module, nn.Module):
        return False
    name = _name_of(module)
    return name in _SAME_POOLS or (name in _SAME_CONVS and getattr(module, "same_pad", True))


def is_standardised(module: object) -> bool:
    """A convolution that standardises its weight at every call."""
    return isinstance(module, nn.Conv2d) and _name_of(module) in _STANDARDISED


def has_known_forward(module: object) -> bool:
    """A subclass of a layer of torch.nn whose forward of its own is known here."""
    return is_as_torch(module) or pads_to_same(module) or is_standardised(module)


def standardised(weight: Tensor, gain: Tensor | None, scale: float, eps: float) -> Tensor:
    """Filters of mean 0 and variance 1, times gain * scale where there is a gain."""
    rows = weight.reshape(1, weight.size(0), -1)
    factor = None if gain is None else (gain * scale).view(-1)
    return F.batch_norm(rows, None, None, factor, None, True, 0.0, eps).reshape(weight.size())


def conv_weight(conv: nn.Conv2d) -> Tensor:
    """The weight that a convolution of fixed parameters multiplies by, in float64 where it is computed."""
    if not is_standardised(conv):
        return conv.weight
    gain = getattr(conv, "gain", None)
    with torch.no_grad():
        gain = gain if gain is None else gain.double()
        return standardised(conv.weight.double(), gain, getattr(conv, "scale", 1.0), conv.eps)


def with_plain_norms(network: nn.Module) -> nn.Module:
    """Put BatchNorm2d of the same tensors in the place of frozen norms, in a shell in evaluation mode."""
    for path, module in list(network.named_modules()):
        if is_frozen_norm(module) and path:
            parent, _, name = path.rpartition(".")
            network.get_submodule(parent)._modules[name] = _as_batch_norm(module)
    return network


def _as_batch_norm(frozen: nn.Module) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(frozen.weight), frozen.eps, device="meta")
    norm.weight = nn.Parameter(frozen.weight, requires_grad=False)
    norm.bias = nn.Parameter(frozen.bias, requires_grad=False)
    norm.running_mean, norm.running_var = frozen.running_mean, frozen.running_var
    norm.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return norm.eval()


class OpenedNorms:
    """Norms with an activation as two nodes each: the norm alone, and the activation behind it."""

    def __init__(self, graph: fx.Graph, root: nn.Module):
        self.graph = graph
        self.pairs: list[tuple[fx.Node, fx.Node]] = []
        for node in list(graph.nodes):
            module = root.get_submodule(node.target) if node.op == "call_module" else None
            if is_norm_act(module) and not isinstance(module.act, nn.Identity):
                self._open(node)

    def _open(self, node: fx.Node) -> None:
        with self.graph.inserting_after(node):
            act = self.graph.call_module(f"{node.target}.act", ())
        node.replace_all_uses_with(act)
        act.args = (node,)
        self.pairs.append((node, act))

    def close(self, taken: set[fx.Node]) -> None:
        """Make one node again of the pairs whose norm is not taken."""
        for norm, act in self.pairs:
            if norm not in taken:
                act.replace_all_uses_with(norm)
                self.graph.erase_node(act)
