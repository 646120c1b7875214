"""What GroupNorm, or InstanceNorm2d, and activation do one after another, in eager PyTorch."""

from typing import Optional

import torch.nn.functional as F
from torch import Tensor

from cnnfast.reference.activation import activate


def group_norm2d(
    input: Tensor,
    num_groups: int,
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    eps: float = 1e-5,
    activation: str = "none",
) -> Tensor:
    """act(group_norm(input)); see cnnfast.ops.group_norm2d."""
    return activate(F.group_norm(input, num_groups, weight, bias, eps), activation)


def instance_norm2d(
    input: Tensor,
    running_mean: Optional[Tensor] = None,
    running_var: Optional[Tensor] = None,
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
) -> Tensor:
    """act(instance_norm(input)); see cnnfast.ops.instance_norm2d."""
    output = F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return activate(output, activation)
