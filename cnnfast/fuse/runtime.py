"""What generated forwards call: the functions of cnnfast.nn plus what separate layers allow beyond them.

torch.nn takes an image without a batch dimension, and a sum may broadcast. torch.jit.script compiles these
functions, so they are typed and plain.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnfast import ops
from cnnfast.nn.conv import conv_act
from cnnfast.nn.conv_bn import conv_bn_act
from cnnfast.nn.pool import global_avg_pool2d
from cnnfast.reference.activation import activate


def conv(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    pad_first: list[int],
    pad_mode: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
) -> Tensor:
    """Conv2d, + residual (of any shape that broadcasts), activation."""
    if x.dim() == 3:
        y = conv_act(
            x.unsqueeze(0), None, weight, bias, pad_first, pad_mode, stride, padding, dilation, groups, "none"
        ).squeeze(0)
        return add_and_activate(y, residual, activation)
    if residual is None or adds_elementwise(x, residual, weight, pad_first, stride, padding, dilation):
        return conv_act(
            x, residual, weight, bias, pad_first, pad_mode, stride, padding, dilation, groups, activation
        )
    y = conv_act(x, None, weight, bias, pad_first, pad_mode, stride, padding, dilation, groups, "none")
    return add_and_activate(y, residual, activation)


def conv_bn(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches_tracked: Tensor | None,
    training: bool,
    track_running_stats: bool,
    momentum: float | None,
    eps: float,
    pad_first: list[int],
    pad_mode: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
) -> Tensor:
    """Conv2d, BatchNorm2d, + residual (of any shape that broadcasts), activation."""
    fits = residual is None or adds_elementwise(x, residual, weight, pad_first, stride, padding, dilation)
    y = conv_bn_act(
        x,
        residual if fits else None,
        weight,
        bias,
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        batches_tracked,
        training,
        track_running_stats,
        momentum,
        eps,
        pad_first,
        pad_mode,
        stride,
        padding,
        dilation,
        groups,
        activation if fits else "none",
    )
    return y if fits else add_and_activate(y, residual, activation)


def adds_elementwise(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    pad_first: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> bool:
    """Whether the residual has the convolution's output shape and dtype; others are added afterwards."""
    if residual.dim() != 4 or residual.dtype != x.dtype:
        return False
    if not torch.jit.is_scripting():
        if torch.jit.is_tracing():
            with warnings.catch_warnings():  # the answer is part of the trace; other shapes then are an error
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                return _sizes_fit(x, residual, weight, pad_first, stride, padding, dilation)
    return _sizes_fit(x, residual, weight, pad_first, stride, padding, dilation)


def has_shape_of(residual: Tensor, x: Tensor) -> bool:
    """Whether two tensors have one shape and dtype."""
    if residual.dtype != x.dtype:
        return False
    if not torch.jit.is_scripting():
        if torch.jit.is_tracing():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                return list(residual.size()) == list(x.size())
    return list(residual.size()) == list(x.size())


def _sizes_fit(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    pad_first: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> bool:
    if residual.size(0) != x.size(0) or residual.size(1) != weight.size(0):
        return False
    for i in range(2):
        size = x.size(2 + i) + 2 * padding[i]
        if len(pad_first) > 0:
            size = size + pad_first[2 - 2 * i] + pad_first[3 - 2 * i]  # left, right, top, bottom
        covered = dilation[i] * (weight.size(2 + i) - 1) + 1
        if residual.size(2 + i) != (size - covered) // stride[i] + 1:
            return False
    return True


def add_and_activate(y: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    """What stands behind a convolution where it is not part of the call."""
    return activate(y if residual is None else y + residual, activation)


def max_pool(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Tensor:
    """MaxPool2d."""
    if x.dim() == 3:
        return ops.max_pool2d(x.unsqueeze(0), kernel_size, stride, padding, dilation, ceil_mode).squeeze(0)
    return ops.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """AvgPool2d."""
    if x.dim() == 3:
        x = x.unsqueeze(0)
        y = ops.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        return y.squeeze(0)
    return ops.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def global_avg_pool(x: Tensor, output_size: list[int]) -> Tensor:
    """AdaptiveAvgPool2d, which is set to pool to one pixel."""
    if x.dim() != 4 or output_size[0] != 1 or output_size[1] != 1:
        return F.adaptive_avg_pool2d(x, output_size)
    return global_avg_pool2d(x)


def image_mean(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    """x.mean(dim, keepdim) over the last two dimensions of images."""
    if x.dim() != 4:
        return x.mean(dim, keepdim=keepdim)
    y = global_avg_pool2d(x)
    return y if keepdim else y.flatten(1)


def in_layout_of(y: Tensor, x: Tensor) -> Tensor:
    """A convolution's result in channels_last only where its input is: what reads it may call x.view."""
    return as_separate_layers(y, [x])


def in_rows(x: Tensor) -> Tensor:
    """The tensor in the usual layout, for code that writes into x.view or asks for strides."""
    return x.contiguous()


def as_separate_layers(y: Tensor, origins: list[Tensor]) -> Tensor:
    """The result in the layout of separate layers that start at `origins`, for code that calls x.view."""
    for x in origins:
        if x.dim() != 4 or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
            return y.contiguous()
    return y if len(origins) > 0 else y.contiguous()
