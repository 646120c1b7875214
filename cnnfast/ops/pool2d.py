"""Max, average and global average pooling."""

from typing import List, Optional

import torch
from torch import Tensor
from torch._jit_internal import BroadcastingList2

from cnnfast import _ext, reference
from cnnfast.ops import _backend

_max_pool2d = torch.ops.cnnfast.max_pool2d if _ext.AVAILABLE else reference.max_pool2d
_avg_pool2d = torch.ops.cnnfast.avg_pool2d if _ext.AVAILABLE else reference.avg_pool2d
_global_avg_pool2d = torch.ops.cnnfast.global_avg_pool2d if _ext.AVAILABLE else reference.global_avg_pool2d


def max_pool2d(
    input: Tensor,
    kernel_size: BroadcastingList2[int],
    stride: Optional[BroadcastingList2[int]] = None,
    padding: List[int] = (0, 0),
    dilation: List[int] = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    """Largest value of every window, NaN where a window holds one; as torch.nn.functional.max_pool2d.

    Args:
        input: (N, C, H, W), any strides; CPU: float32 runs the kernels, other dtypes ATen.
        kernel_size, stride, padding, dilation: int or (vertical, horizontal), inside torch.jit.script the
            last two as pairs; stride None means kernel_size; padding at most half the kernel, with -inf.
        ceil_mode: round the output size up, as long as a window starts inside the input or its left padding.

    Returns:
        (N, C, Ho, Wo), differentiable once; the gradient goes to the first largest value of a window.

    Raises:
        RuntimeError: shapes or options that do not fit; names operator, argument and shapes.

    Source: course notes, pooling; torch.nn.MaxPool2d.
    """
    if stride is None:
        stride = torch.jit.annotate(List[int], [])
    if not torch.jit.is_scripting():
        if _backend.needs_reference(input, input):
            return reference.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    input: Tensor,
    kernel_size: BroadcastingList2[int],
    stride: Optional[BroadcastingList2[int]] = None,
    padding: List[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Optional[int] = None,
) -> Tensor:
    """Mean of every window; as torch.nn.functional.avg_pool2d.

    Args:
        input: (N, C, H, W), any strides; CPU: float32 runs the kernels, other dtypes ATen.
        kernel_size, stride, padding: int or (vertical, horizontal), inside torch.jit.script padding as a
            pair; stride None means kernel_size; padding at most half the kernel, with zeros.
        ceil_mode: round the output size up, as long as a window starts inside the input or its left padding.
        count_include_pad: whether padding counts in the divisor.
        divisor_override: divide by this instead.

    Returns:
        (N, C, Ho, Wo), differentiable once.

    Raises:
        RuntimeError: shapes or options that do not fit; names operator, argument and shapes.

    Source: course notes, pooling; torch.nn.AvgPool2d.
    """
    if stride is None:
        stride = torch.jit.annotate(List[int], [])
    if not torch.jit.is_scripting():
        if _backend.needs_reference(input, input):
            return reference.avg_pool2d(
                input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
            )
    return _avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def global_avg_pool2d(input: Tensor) -> Tensor:
    """Mean of every channel of every image; as torch.nn.AdaptiveAvgPool2d(1).

    Args:
        input: (N, C, H, W), any strides; CPU: float32 runs the kernels, other floating dtypes ATen.

    Returns:
        (N, C, 1, 1), differentiable once.

    Raises:
        RuntimeError: no image, channels or pixels; names operator, argument and shape.

    Source: Lin, Chen and Yan 2013, arXiv:1312.4400, as in the course notes on NiN, GoogLeNet and ResNet.
    """
    if not torch.jit.is_scripting():
        if _backend.needs_reference(input, input):
            return reference.global_avg_pool2d(input)
    return _global_avg_pool2d(input)
