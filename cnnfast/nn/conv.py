"""Convolution and activation as one module."""

from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnfast.nn._checks import check_activation, check_conv_arguments, check_conv_module
from cnnfast.nn._holders import (
    check_scriptable,
    is_as_built,
    pad_mode,
    settings_of,
    split_padding,
)
from cnnfast.ops.conv2d import conv2d
from cnnfast.reference.activation import activate


@torch.fx.wrap
def conv_act(
    input: Tensor,
    residual: Optional[Tensor],
    weight: Tensor,
    bias: Optional[Tensor],
    pad_first: List[int],
    pad_mode: str,
    stride: List[int],
    padding: List[int],
    dilation: List[int],
    groups: int,
    activation: str,
) -> Tensor:
    """What ConvAct2d computes; one call in an FX graph."""
    if len(pad_first) > 0:
        input = F.pad(input, pad_first, pad_mode)
    return conv2d(input, weight, bias, None, residual, stride, padding, dilation, groups, activation)


class ConvAct2d(nn.Module):
    """act(Conv2d(input) + residual) in one pass.

    Arguments as torch.nn.Conv2d (padding "same" and "valid", every padding_mode), and activation: "none",
    "relu" or "sigmoid". Input (N, Ci, H, W), residual the output's shape or None, output (N, Co, Ho, Wo).

    The parameters are those of the child `conv`. A child with hooks, or one replaced by another kind of
    module or a convolution with other settings, is called itself: slower, and right.

    Raises ValueError for arguments that do not fit each other.

    Source: course notes; torch.nn.Conv2d.
    """

    pad_first: List[int]
    padding: Tuple[int, int]

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        *,
        activation="relu",
        device=None,
        dtype=None,
    ):
        super().__init__()
        check_conv_arguments(type(self).__name__, in_channels, out_channels, kernel_size, groups)
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self._adopt(conv, activation)

    @classmethod
    def from_modules(cls, conv: nn.Conv2d, activation: str = "relu") -> "ConvAct2d":
        """The fused layer around an existing convolution, which becomes its child: parameters are shared."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._adopt(conv, activation)
        layer.training = conv.training
        return layer

    def _adopt(self, conv: nn.Conv2d, activation: str) -> None:
        name = type(self).__name__
        check_activation(name, activation)
        check_conv_module(name, conv)
        self.conv = conv
        self.activation = activation
        self.pad_first, self.padding = split_padding(conv)
        self.pad_mode = pad_mode(conv)
        self._built = settings_of(conv)

    def forward(self, input: Tensor, residual: Optional[Tensor] = None) -> Tensor:
        if not torch.jit.is_scripting():
            if not is_as_built(self.conv, self._built):
                output = self.conv(input)
                return activate(output if residual is None else output + residual, self.activation)
        return conv_act(
            input,
            residual,
            self.conv.weight,
            self.conv.bias,
            self.pad_first,
            self.pad_mode,
            self.conv.stride,
            self.padding,
            self.conv.dilation,
            self.conv.groups,
            self.activation,
        )

    def __prepare_scriptable__(self) -> nn.Module:
        check_scriptable(self, conv=self._built)
        return self

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


class ConvReLU2d(ConvAct2d):
    """relu(Conv2d(input) + residual); arguments as ConvAct2d without activation."""

    def __init__(self, in_channels, out_channels, kernel_size, *args, **kwargs):
        super().__init__(in_channels, out_channels, kernel_size, *args, activation="relu", **kwargs)
