"""The activations that a fused layer can end with."""

from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


def _parsed(activation: str) -> Tuple[str, List[float]]:
    """The name, and the numbers in parentheses behind it."""
    numbers: List[float] = []
    if not activation.endswith(")"):
        return activation, numbers
    name, rest = activation[:-1].split("(", 1)
    for number in rest.split(","):
        numbers.append(float(number))
    return name, numbers


def activate(input: Tensor, activation: str) -> Tensor:
    """Apply an activation by its name, to any shape; NaN is kept.

    activation: "none", "relu", "sigmoid", "relu6", "hardtanh" or "hardtanh(least, most)", "leaky_relu" or
        "leaky_relu(slope)", "elu" or "elu(alpha)", "hardsigmoid", "hardswish", "silu", "tanh", "gelu",
        "gelu_tanh", "mish".

    Raises RuntimeError for other names.
    """
    name, numbers = _parsed(activation)
    if len(numbers) == 0:
        if name == "none":
            return input
        if name == "relu":
            return torch.relu(input)
        if name == "sigmoid":
            return torch.sigmoid(input)
        if name == "relu6":
            return F.relu6(input)
        if name == "hardsigmoid":
            return F.hardsigmoid(input)
        if name == "hardswish":
            return F.hardswish(input)
        if name == "silu":
            return F.silu(input)
        if name == "tanh":
            return torch.tanh(input)
        if name == "gelu":
            return F.gelu(input)
        if name == "gelu_tanh":
            return F.gelu(input, approximate="tanh")
        if name == "mish":
            return F.mish(input)
    if name == "leaky_relu" and len(numbers) <= 1:
        return F.leaky_relu(input, 0.01 if len(numbers) == 0 else numbers[0])
    if name == "elu" and len(numbers) <= 1:
        return F.elu(input, 1.0 if len(numbers) == 0 else numbers[0])
    if name == "hardtanh" and len(numbers) == 0:
        return F.hardtanh(input)
    if name == "hardtanh" and len(numbers) == 2:
        return F.hardtanh(input, numbers[0], numbers[1])
    raise RuntimeError(
        "activation must be one of none, relu, sigmoid, relu6, hardtanh, leaky_relu, hardsigmoid, hardswish, "
        "silu, tanh, gelu, gelu_tanh, elu, mish, not '" + activation + "'"
    )
