"""What the modules check when they are built; the messages show the call as it should be."""

import difflib

from torch import nn

ACTIVATIONS = ("none", "relu", "sigmoid")


def check_activation(owner: str, activation: str) -> None:
    """ValueError unless a fused layer can end with this activation."""
    if activation in ACTIVATIONS:
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


def check_bn_module(owner: str, conv: nn.Conv2d, bn: nn.Module) -> None:
    """TypeError or ValueError unless this batch norm fits behind the convolution."""
    if not isinstance(bn, nn.modules.batchnorm._BatchNorm):
        raise TypeError(f"{owner}: bn must be a torch.nn.BatchNorm2d, not {type(bn).__name__}")
    if bn.num_features != conv.out_channels:
        raise ValueError(
            f"{owner}: bn normalises {bn.num_features} channels, but conv gives {conv.out_channels}; "
            f"write BatchNorm2d({conv.out_channels})"
        )
