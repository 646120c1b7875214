"""What Conv2d + BatchNorm2d (+ add) + activation do one after another, in eager PyTorch."""

from typing import List, Optional

import torch.nn.functional as F
from torch import Tensor

from cnnfast.reference.activation import activate


def conv2d_bn_act(
    input: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    bn_weight: Optional[Tensor] = None,
    bn_bias: Optional[Tensor] = None,
    running_mean: Optional[Tensor] = None,
    running_var: Optional[Tensor] = None,
    residual: Optional[Tensor] = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: List[int] = (1, 1),
    padding: List[int] = (0, 0),
    dilation: List[int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
) -> Tensor:
    """act(batch_norm(conv(input, weight, bias)) + residual); see cnnfast.ops.conv2d_bn_act."""
    output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    use_batch = training or running_mean is None or running_var is None
    output = F.batch_norm(output, running_mean, running_var, bn_weight, bn_bias, use_batch, momentum, eps)
    if residual is not None:
        output = output + residual
    return activate(output, activation)
