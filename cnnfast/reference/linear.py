"""Fully connected layer with its activation, in eager PyTorch."""

from typing import Optional

import torch.nn.functional as F
from torch import Tensor

from cnnfast.reference.activation import activate


def linear(input: Tensor, weight: Tensor, bias: Optional[Tensor] = None, activation: str = "none") -> Tensor:
    """act(input @ weight.T + bias); see cnnfast.ops.linear."""
    return activate(F.linear(input, weight, bias), activation)
