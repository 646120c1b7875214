"""Max, average and global average pooling in eager PyTorch."""

from typing import List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._jit_internal import BroadcastingList2


def max_pool2d(
    input: Tensor,
    kernel_size: BroadcastingList2[int],
    stride: Optional[BroadcastingList2[int]] = None,
    padding: List[int] = (0, 0),
    dilation: List[int] = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    """Largest value of every window; see cnnfast.ops.max_pool2d."""
    return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    input: Tensor,
    kernel_size: BroadcastingList2[int],
    stride: Optional[BroadcastingList2[int]] = None,
    padding: List[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Optional[int] = None,
) -> Tensor:
    """Mean of every window; see cnnfast.ops.avg_pool2d."""
    if stride is None:
        stride = torch.jit.annotate(List[int], [])
    return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def global_avg_pool2d(input: Tensor) -> Tensor:
    """Mean of every channel of every image, (N, C, 1, 1); see cnnfast.ops.global_avg_pool2d."""
    return F.adaptive_avg_pool2d(input, [1, 1])
