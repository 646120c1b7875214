"""What BatchNorm2d + activation + Conv2d (+ add) do one after another, in eager PyTorch."""

from typing import List, Optional

import torch.nn.functional as F
from torch import Tensor

from cnnfast.reference.batch_norm2d import batch_norm2d


def bn_act_conv2d(
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
    pre_activation: str = "relu",
) -> Tensor:
    """conv(act(batch_norm(input)), weight) + bias + residual; see cnnfast.ops.bn_act_conv2d."""
    activated = batch_norm2d(
        input,
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        None,
        training,
        momentum,
        eps,
        pre_activation,
    )
    output = F.conv2d(activated, weight, bias, stride, padding, dilation, groups)
    return output if residual is None else output + residual
