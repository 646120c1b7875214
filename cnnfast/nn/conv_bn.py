"""Convolution, batch normalisation and activation as one module."""

from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnfast.nn._checks import check_activation, check_bn_module, check_conv_arguments, check_conv_module
from cnnfast.nn._holders import (
    check_scriptable,
    is_as_built,
    must_be_called,
    pad_mode,
    settings_of,
    split_padding,
)
from cnnfast.nn._statistics import averages, settle, step_of
from cnnfast.ops.conv2d_bn_act import conv2d_bn_act
from cnnfast.reference.activation import activate


@torch.fx.wrap
def conv_bn_act(
    input: Tensor,
    residual: Optional[Tensor],
    weight: Tensor,
    bias: Optional[Tensor],
    bn_weight: Optional[Tensor],
    bn_bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    batches_tracked: Optional[Tensor],
    training: bool,
    track_running_stats: bool,
    momentum: Optional[float],
    eps: float,
    pad_first: List[int],
    pad_mode: str,
    stride: List[int],
    padding: List[int],
    dilation: List[int],
    groups: int,
    activation: str,
) -> Tensor:
    """What ConvBNAct2d computes, bookkeeping of torch.nn.BatchNorm2d included; one call in an FX graph."""
    if len(pad_first) > 0:
        input = F.pad(input, pad_first, pad_mode)
    mean = averages(running_mean, training, track_running_stats, momentum)
    var = averages(running_var, training, track_running_stats, momentum)
    output = conv2d_bn_act(
        input,
        weight,
        bias,
        bn_weight,
        bn_bias,
        mean,
        var,
        residual,
        training,
        step_of(momentum),
        eps,
        stride,
        padding,
        dilation,
        groups,
        activation,
    )
    settle(running_mean, running_var, mean, var, batches_tracked, training, track_running_stats, momentum)
    return output


class ConvBNAct2d(nn.Module):
    """act(BatchNorm2d(Conv2d(input)) + residual) in one pass.

    Arguments as torch.nn.Conv2d (padding "same" and "valid", every padding_mode), as torch.nn.BatchNorm2d
    (eps, momentum, affine, track_running_stats), and activation: "none", "relu" or "sigmoid". Input (N, Ci,
    H, W), residual the output's shape or None, output (N, Co, Ho, Wo).

    The parameters and running averages are those of the children `conv` and `bn`; `bn.training` decides which
    statistics normalise, so `layer.bn.eval()` freezes them as usual. A child with hooks, or one replaced by
    another kind of module (SyncBatchNorm) or a convolution with other settings, is called itself: slower, and
    right.

    Raises ValueError for arguments that do not fit each other.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, as in the course notes; torch.nn.Conv2d,
    torch.nn.BatchNorm2d.
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
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
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
        bn = nn.BatchNorm2d(
            out_channels, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self._adopt(conv, bn, activation)

    @classmethod
    def from_modules(cls, conv: nn.Conv2d, bn: nn.BatchNorm2d, activation: str = "relu") -> "ConvBNAct2d":
        """The fused layer around existing modules, which become its children: tensors are shared."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._adopt(conv, bn, activation)
        layer.training = conv.training
        return layer

    def _adopt(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, activation: str) -> None:
        name = type(self).__name__
        check_activation(name, activation)
        check_conv_module(name, conv)
        check_bn_module(name, conv, bn)
        self.conv = conv
        self.bn = bn
        self.activation = activation
        self.pad_first, self.padding = split_padding(conv)
        self.pad_mode = pad_mode(conv)
        self._built = settings_of(conv)

    def forward(self, input: Tensor, residual: Optional[Tensor] = None) -> Tensor:
        if not torch.jit.is_scripting():
            if not is_as_built(self.conv, self._built) or must_be_called(self.bn, nn.BatchNorm2d):
                output = self.bn(self.conv(input))
                return activate(output if residual is None else output + residual, self.activation)
        return conv_bn_act(
            input,
            residual,
            self.conv.weight,
            self.conv.bias,
            self.bn.weight,
            self.bn.bias,
            self.bn.running_mean,
            self.bn.running_var,
            self.bn.num_batches_tracked,
            self.bn.training,
            self.bn.track_running_stats,
            self.bn.momentum,
            self.bn.eps,
            self.pad_first,
            self.pad_mode,
            self.conv.stride,
            self.padding,
            self.conv.dilation,
            self.conv.groups,
            self.activation,
        )

    def __prepare_scriptable__(self) -> nn.Module:
        check_scriptable(self, conv=self._built, bn=nn.BatchNorm2d)
        return self

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


class ConvBNReLU2d(ConvBNAct2d):
    """relu(BatchNorm2d(Conv2d(input)) + residual); arguments as ConvBNAct2d without activation."""

    def __init__(self, in_channels, out_channels, kernel_size, *args, **kwargs):
        super().__init__(in_channels, out_channels, kernel_size, *args, activation="relu", **kwargs)


class ConvBN2d(ConvBNAct2d):
    """BatchNorm2d(Conv2d(input)) + residual; arguments as ConvBNAct2d without activation."""

    def __init__(self, in_channels, out_channels, kernel_size, *args, **kwargs):
        super().__init__(in_channels, out_channels, kernel_size, *args, activation="none", **kwargs)
