"""Convolution with everything that can follow it, in eager PyTorch."""

from typing import List, Optional

import torch.nn.functional as F
from torch import Tensor

from cnnfast.reference.activation import activate


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    scale: Optional[Tensor] = None,
    residual: Optional[Tensor] = None,
    stride: List[int] = (1, 1),
    padding: List[int] = (0, 0),
    dilation: List[int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
) -> Tensor:
    """act(conv(input, weight) * scale + bias + residual); see cnnfast.ops.conv2d."""
    output = F.conv2d(input, weight, bias if scale is None else None, stride, padding, dilation, groups)
    if scale is not None:
        scaled = output * scale.view(-1, 1, 1)
        if bias is not None:
            scaled = scaled + bias.view(-1, 1, 1)
        output = scaled.to(output.dtype)  # autocast gives the convolution a narrower type than the scale
    if residual is not None:
        output = output + residual
    return activate(output, activation)
