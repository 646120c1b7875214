"""What BatchNorm2d (+ add) + activation do one after another, in eager PyTorch."""

from typing import Optional

import torch.nn.functional as F
from torch import Tensor

from cnnfast.reference.activation import activate


def batch_norm2d(
    input: Tensor,
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    running_mean: Optional[Tensor] = None,
    running_var: Optional[Tensor] = None,
    residual: Optional[Tensor] = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
) -> Tensor:
    """act(batch_norm(input) + residual); see cnnfast.ops.batch_norm2d."""
    use_batch = training or running_mean is None or running_var is None
    output = F.batch_norm(input, running_mean, running_var, weight, bias, use_batch, momentum, eps)
    if residual is not None:
        output = output + residual
    return activate(output, activation)
