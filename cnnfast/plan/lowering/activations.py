"""Activations as steps; folding puts them into the layer in front."""

import math

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.plan.lowering.context import Lowering, Unsupported, Value, lowers
from cnnfast.plan.nodes import Act, Op
from cnnfast.plan.steps import Step

_PLAIN = {
    Act.HARDSIGMOID: (nn.Hardsigmoid, (F.hardsigmoid,), ("hardsigmoid",)),
    Act.HARDSWISH: (nn.Hardswish, (F.hardswish,), ("hardswish",)),
    Act.SILU: (nn.SiLU, (F.silu,), ("silu",)),
    Act.TANH: (nn.Tanh, (torch.tanh, torch.tanh_, F.tanh), ("tanh", "tanh_")),
    Act.MISH: (nn.Mish, (F.mish,), ("mish",)),
}


def _register(act: Act, module: type, functions: tuple, methods: tuple) -> None:
    @lowers(*functions, methods=methods)
    def from_function(low: Lowering, input, inplace=False) -> Value:
        return low.activation(input, act)

    @lowers(modules=[module])
    def from_module(low: Lowering, layer: nn.Module, x: fx.Node) -> Value:
        return low.activation(x, act)


for _act, (_module, _functions, _methods) in _PLAIN.items():
    _register(_act, _module, _functions, _methods)


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unsupported(f"its {what} is computed in the forward: write it as a number")
    return float(value)


@lowers(modules=[nn.ReLU6])
def _relu6_module(low: Lowering, layer: nn.ReLU6, x: fx.Node) -> Value:
    return low.activation(x, Act.CLAMP, 0.0, 6.0)


@lowers(F.relu6)
def _relu6(low: Lowering, input, inplace=False) -> Value:
    return low.activation(input, Act.CLAMP, 0.0, 6.0)


@lowers(modules=[nn.Hardtanh])
def _hardtanh_module(low: Lowering, layer: nn.Hardtanh, x: fx.Node) -> Value:
    return _hardtanh(low, x, layer.min_val, layer.max_val)


@lowers(F.hardtanh, F.hardtanh_)
def _hardtanh(low: Lowering, input, min_val=-1.0, max_val=1.0, inplace=False) -> Value:
    return low.activation(input, Act.CLAMP, _number(min_val, "min_val"), _number(max_val, "max_val"))


@lowers(torch.clamp, torch.clip, methods=["clamp", "clamp_", "clip"])
def _clamp(low: Lowering, input, min=None, max=None) -> Value:
    least = -math.inf if min is None else _number(min, "min")
    most = math.inf if max is None else _number(max, "max")
    if least == 0.0 and most == math.inf:
        return low.activation(input, Act.RELU)
    return low.activation(input, Act.CLAMP, least, most)


@lowers(modules=[nn.LeakyReLU])
def _leaky_relu_module(low: Lowering, layer: nn.LeakyReLU, x: fx.Node) -> Value:
    return _leaky_relu(low, x, layer.negative_slope)


@lowers(F.leaky_relu, F.leaky_relu_)
def _leaky_relu(low: Lowering, input, negative_slope=0.01, inplace=False) -> Value:
    return low.activation(input, Act.LEAKY_RELU, _number(negative_slope, "negative_slope"))


@lowers(modules=[nn.ELU])
def _elu_module(low: Lowering, layer: nn.ELU, x: fx.Node) -> Value:
    return _elu(low, x, layer.alpha)


@lowers(F.elu, F.elu_)
def _elu(low: Lowering, input, alpha=1.0, inplace=False) -> Value:
    return low.activation(input, Act.ELU, _number(alpha, "alpha"))


@lowers(modules=[nn.GELU])
def _gelu_module(low: Lowering, layer: nn.GELU, x: fx.Node) -> Value:
    return _gelu(low, x, layer.approximate)


@lowers(F.gelu)
def _gelu(low: Lowering, input, approximate="none") -> Value:
    return low.activation(input, Act.GELU if approximate == "none" else Act.GELU_TANH)


@lowers(modules=[nn.PReLU], lines=True)
def _prelu_module(low: Lowering, layer: nn.PReLU, x: fx.Node) -> Value:
    return _prelu(low, x, layer.weight)


@lowers(F.prelu, torch.prelu, lines=True)
def _prelu(low: Lowering, input, weight) -> Value:
    slope = low.tensor(weight)
    if slope.numel() == 1:
        return low.activation(input, Act.LEAKY_RELU, slope.item())
    return Step(Op.PRELU, [low.image(input)], {"channels": slope.numel()}, {"slope": slope})
