"""A network without kinks: what its gradients differ by comes from kernels, not from decisions.

A ReLU that a rounding error turns on or off, or a maximum that it moves to another pixel, changes a gradient
by far more than the error itself. In the smooth twin of a network such functions are replaced by smooth ones
that run by the same kernels otherwise.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_MODULES = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.PReLU, nn.ELU), nn.SiLU),
    nn.Hardsigmoid: nn.Sigmoid,
    nn.Hardtanh: nn.Tanh,
}


def smooth_twin(model: nn.Module) -> nn.Module:
    """A copy whose layers with kinks are smooth ones; functions: see `Smooth`."""
    twin = copy.deepcopy(model)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            parent._modules[name] = _smooth(child)
    return twin


def _smooth(layer: nn.Module) -> nn.Module:
    if type(layer) in _MODULES:
        return _MODULES[type(layer)]()
    if type(layer) is nn.MaxPool2d:
        return nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
    return layer


class Smooth(TorchFunctionMode):
    """While it lasts, functions with kinks compute smooth ones, in calls and in traces."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return _FUNCTIONS.get(func, func)(*args, **(kwargs or {}))


def _silu(x: Tensor, *others, **options) -> Tensor:
    return F.silu(x)


def _sigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    return torch.sigmoid(x)


def _avg_pool(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    assert not return_indices
    return F.avg_pool2d(x, kernel_size, stride or kernel_size, padding, ceil_mode)


_FUNCTIONS = {
    **dict.fromkeys(
        (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.leaky_relu), _silu
    ),
    **dict.fromkeys((F.hardswish, F.elu), _silu),
    F.hardsigmoid: _sigmoid,
    F.max_pool2d: _avg_pool,
    torch.max_pool2d: _avg_pool,
}
