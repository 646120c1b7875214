"""What the modules check when they are built; the messages show the call as it should be."""

import difflib

import torch
from torch import nn

from cnnfast.reference.activation import activate

ACTIVATIONS = (
    "none", "relu", "sigmoid", "relu6", "hardtanh", "leaky_relu", "hardsigmoid", "hardswish", "silu", "tanh",
    "gelu", "gelu_tanh", "elu", "mish",
)  # fmt: skip


def _is_activation(activation: object) -> bool:
    """Whether this is a name, with numbers or without, as "leaky_relu(0.2)"."""
    if not isinstance(activation, str):
        return False
    try:
        activate(torch.zeros(1), activation)
    except (RuntimeError, ValueError):
        return False
    return True


def check_activation(owner: str, activation: str) -> None:
    """ValueError unless a fused layer can end with this activation."""
    if _is_activation(activation):
        return
    close = difflib.get_close_matches(str(activation).lower(), ACTIVATIONS, n=1)
    hint = f'; write {owner}(..., activation="{close[0]}")' if close else ""
    raise ValueError(f"{owner}: activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}{hint}")


def check_conv_arguments(
    owner: str, in_channels: int, out_channels: int, kernel_size: object, groups: int
) -> None:
    """ValueError unless channels and groups fit each other."""
    call = f"{owner}({in_channels}, {out_channels}, {kernel_size}, groups={groups})"
    if in_channels < 1 or out_channels < 1:
        raise ValueError(f"{call}: channels must be at least 1")
    if groups < 1 or in_channels % groups or out_channels % groups:
        possible = [
            g
            for g in range(1, min(in_channels, out_channels) + 1)
            if in_channels % g == out_channels % g == 0
        ]
        best = min(possible, key=lambda g: (abs(g - groups), g))
        right = f"{owner}({in_channels}, {out_channels}, {kernel_size}, groups={best})"
        raise ValueError(
            f"{call}: groups must divide {in_channels} input and {out_channels} output channels; "
            f"write {right}"
        )


def check_conv_module(owner: str, conv: nn.Module) -> None:
    """TypeError unless this is a two-dimensional convolution."""
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"{owner}: conv must be a torch.nn.Conv2d, not {type(conv).__name__}")


def check_linear_module(owner: str, linear: nn.Module) -> None:
    """TypeError unless this is a fully connected layer."""
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{owner}: linear must be a torch.nn.Linear, not {type(linear).__name__}")


def check_bn_kind(owner: str, bn: nn.Module, right: str = "BatchNorm2d") -> None:
    """TypeError unless this is a batch norm."""
    if not isinstance(bn, nn.modules.batchnorm._BatchNorm):
        raise TypeError(f"{owner}: bn must be a torch.nn.{right}, not {type(bn).__name__}")


def check_bn_features(owner: str, bn: nn.Module, channels: int, who: str, right: str = "BatchNorm2d") -> None:
    """TypeError or ValueError unless this batch norm fits the layer beside it."""
    check_bn_kind(owner, bn, right)
    if bn.num_features != channels:
        raise ValueError(
            f"{owner}: bn normalises {bn.num_features} channels, but {who} {channels}; "
            f"write {right}({channels})"
        )


def check_bn_module(owner: str, conv: nn.Conv2d, bn: nn.Module) -> None:
    """TypeError or ValueError unless this batch norm fits behind the convolution."""
    check_bn_features(owner, bn, conv.out_channels, "conv gives")


def check_bn_in_front(owner: str, bn: nn.Module, conv: nn.Conv2d) -> None:
    """TypeError or ValueError unless this batch norm fits in front of the convolution."""
    check_bn_features(owner, bn, conv.in_channels, "conv takes")


def check_counts(owner: str, **counts: int) -> None:
    """ValueError unless every number, of channels or layers, is at least 1."""
    for name, count in counts.items():
        if count < 1:
            call = ", ".join(f"{key}={value}" for key, value in counts.items())
            raise ValueError(f"{owner}({call}): {name} must be at least 1")


def check_addition(owner: str, in_channels: int, out_channels: int, use_1x1conv: bool, stride: int) -> None:
    """ValueError where the input is to be added to an output of another shape."""
    if use_1x1conv or (in_channels == out_channels and stride == 1):
        return
    raise ValueError(
        f"{owner}({in_channels}, {out_channels}, stride={stride}): the input cannot be added to an output of "
        f"another shape; write {owner}({in_channels}, {out_channels}, use_1x1conv=True, stride={stride})"
    )
