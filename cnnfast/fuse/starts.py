"""Which nodes a fused call can begin with, and which settings no operator has."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.fuse.foreign import is_frozen_norm
from cnnfast.fuse.functions import stand_in
from cnnfast.fuse.kinds import image_mean, is_image_size, module_of
from cnnfast.fuse.tracing import is_ours

_FUNCTIONS = {
    F.max_pool2d: "max_pool",
    torch.max_pool2d: "max_pool",
    F.avg_pool2d: "avg_pool",
    F.adaptive_avg_pool2d: "global_avg_pool",
    F.local_response_norm: "local_response_norm",
    F.group_norm: "group_norm",
    torch.group_norm: "group_norm",
    F.instance_norm: "instance_norm",
}
_MODULES = {
    nn.Conv2d: "conv",
    nn.Linear: "linear",
    nn.BatchNorm2d: "bn",
    nn.GroupNorm: "group_norm",
    nn.InstanceNorm2d: "instance_norm",
    nn.MaxPool2d: "max_pool",
    nn.AvgPool2d: "avg_pool",
    nn.AdaptiveAvgPool2d: "global_avg_pool",
    nn.LocalResponseNorm: "local_response_norm",
}
OF_IMAGES = ("group_norm", "instance_norm")  # each by its own statistics
WITHOUT_STATE = (
    "max_pool",
    "avg_pool",
    "global_avg_pool",
    "mean",
    "local_response_norm",
)  # may be called twice


def start_of(node: fx.Node, root: nn.Module) -> str | None:
    """The kind of group that begins with a node, if one does."""
    module = module_of(node, root)
    if module is not None:
        if is_ours(module):
            return None
        if is_frozen_norm(module):
            return "bn"
        return next((kind for cls, kind in _MODULES.items() if isinstance(module, cls)), None)
    if node.target is torch.mean or (node.op == "call_method" and node.target == "mean"):
        return "mean" if image_mean(node) else None
    kind = _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    return "global_avg_pool" if kind == "avg_pool" and _covers_image(node) else kind


def _covers_image(node: fx.Node) -> bool:
    """F.avg_pool2d(x, x.size()[2:])"""
    arguments = [*node.args[1:], *node.kwargs.values()]
    given = len(node.args) == 2 or list(node.kwargs) == ["kernel_size"]
    return given and len(arguments) == 1 and is_image_size(arguments[0], node.args[0])


def why_not_function(node: fx.Node) -> str | None:
    """Why a function that could begin a group does not."""
    if stand_in(node) is not None:
        return None
    if node.target is F.avg_pool2d and _covers_image(node):
        return None
    if _FUNCTIONS.get(node.target) in OF_IMAGES:
        return None if node.args and isinstance(node.args[0], fx.Node) else "its input is given by name"
    if not node.args or not isinstance(node.args[0], fx.Node) or len(node.all_input_nodes) != 1:
        return "its window or size is computed in the forward: write it as a number"
    if node.target is F.adaptive_avg_pool2d:
        size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
        return why_not_output_size(size)
    return "it returns indices too" if node.kwargs.get("return_indices") else None


def why_not_settings(module: nn.Module) -> str | None:
    """Why no operator does what a layer is set to."""
    if getattr(module, "return_indices", False):
        return "it returns indices too"
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return why_not_output_size(module.output_size)
    return None


def why_not_output_size(size: object) -> str | None:
    if size in (1, (1, 1), [1, 1]):
        return None
    return f"its output size is {size}, and there is a kernel for 1 only"
