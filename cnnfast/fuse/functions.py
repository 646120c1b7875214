"""Layers that a forward writes as functions of its own parameters: F.conv2d, F.linear, F.batch_norm.

Such a node gets a stand-in: a module of torch.nn without memory that has its settings, for whoever asks what
it is; and the arguments by the names of the module's attributes, for the fused call.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

STAND_IN, VALUES = "cnnfast_stand_in", "cnnfast_values"


def mark_functions(graph: fx.Graph, root: nn.Module) -> None:
    """Give a stand-in to every function of numbers as settings and of the root's tensors as weights."""
    for node in graph.nodes:
        reader = _READERS.get(node.target) if node.op == "call_function" else None
        if reader is None or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        try:
            made = reader(_Reader(root, node), *node.args, **node.kwargs)
        except (_Odd, TypeError):  # other arguments than a stand-in can have; the function stays
            continue
        if made is not None:
            node.meta[STAND_IN], node.meta[VALUES] = made


class _Odd(Exception):
    """Arguments that no module of torch.nn has."""


class _Reader:
    def __init__(self, root: nn.Module, node: fx.Node):
        self.root, self.node = root, node

    def tensor(self, value: object, optional: bool = True) -> Tensor | None:
        if value is None and optional:
            return None
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            raise _Odd
        path, _, name = value.target.rpartition(".")
        tensor = getattr(self.root.get_submodule(path), name)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise _Odd
        return tensor

    def pair(self, value: object) -> list[int]:
        values = list(value) if isinstance(value, (tuple, list)) else [value, value]
        if len(values) == 1:
            values *= 2
        if len(values) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            raise _Odd
        return values


Made = tuple[nn.Module, dict[str, object]] | None


def _conv2d(reader: _Reader, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Made:
    tensor = reader.tensor(weight, optional=False)
    reader.tensor(bias)
    if tensor.dim() != 4 or not isinstance(groups, int):
        raise _Odd
    stride, padding, dilation = map(reader.pair, (stride, padding, dilation))
    kernel = list(tensor.shape[2:])
    window = (tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))
    channels = (tensor.shape[1] * groups, tensor.shape[0])
    conv = nn.Conv2d(*channels, *window, groups, bias is not None, device="meta", dtype=tensor.dtype)
    values = {"stride": stride, "padding": padding, "dilation": dilation, "kernel_size": kernel}
    return conv, {"weight": weight, "bias": bias, "groups": groups, **values}


def _linear(reader: _Reader, input, weight, bias=None) -> Made:
    tensor = reader.tensor(weight, optional=False)
    reader.tensor(bias)
    if tensor.dim() != 2:
        raise _Odd
    linear = nn.Linear(tensor.shape[1], tensor.shape[0], bias is not None, device="meta", dtype=tensor.dtype)
    return linear, {"weight": weight, "bias": bias}


def _batch_norm(
    reader: _Reader,
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
) -> Made:
    """Behind a convolution or linear layer only: else nothing says whether it normalises images."""
    mean = reader.tensor(running_mean, optional=False)
    reader.tensor(running_var, optional=False)
    scale = reader.tensor(weight)
    reader.tensor(bias)
    layer = stand_in(input) or (
        reader.root.get_submodule(input.target) if input.op == "call_module" else None
    )
    kinds = {nn.Conv2d: nn.BatchNorm2d, nn.Linear: nn.BatchNorm1d}
    kind = next((norm for cls, norm in kinds.items() if isinstance(layer, cls)), None)
    flag = isinstance(training, bool) or (isinstance(training, fx.Node) and training.op == "get_attr")
    if kind is None or not flag or not all(isinstance(v, (int, float)) for v in (momentum, eps)):
        raise _Odd
    norm = kind(len(mean), affine=scale is not None, device="meta", dtype=mean.dtype)
    values = {
        "weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var,
        "num_batches_tracked": None, "training": training, "track_running_stats": True,
        "momentum": float(momentum), "eps": float(eps),
    }  # fmt: skip
    return norm, values


_READERS: dict[object, Callable[..., Made]] = {
    F.conv2d: _conv2d,
    torch.conv2d: _conv2d,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
}


def stand_in(node: fx.Node) -> nn.Module | None:
    """The module that a function node stands for."""
    return node.meta.get(STAND_IN)
