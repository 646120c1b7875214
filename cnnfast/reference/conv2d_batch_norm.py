"""Convolution and batch normalisation with the statistics of the batch, in eager PyTorch."""

from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnfast.reference.activation import activate


def conv2d_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    bn_weight: Optional[Tensor] = None,
    bn_bias: Optional[Tensor] = None,
    residual: Optional[Tensor] = None,
    stride: List[int] = (1, 1),
    padding: List[int] = (0, 0),
    dilation: List[int] = (1, 1),
    groups: int = 1,
    eps: float = 1e-5,
    activation: str = "none",
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """(output, convolution without bias, mean with bias, biased variance); see cnnfast.ops.conv2d_batch_norm.

    Only the output is differentiable.
    """
    biased = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    output = F.batch_norm(biased, None, None, bn_weight, bn_bias, True, 0.0, eps)
    if residual is not None:
        output = output + residual
    with torch.no_grad():
        conv_output = biased if bias is None else biased - bias.view(-1, 1, 1)
        var, mean = torch.var_mean(
            biased.float() if biased.dtype != torch.double else biased, [0, 2, 3], correction=0
        )
    return activate(output, activation), conv_output.detach(), mean, var
