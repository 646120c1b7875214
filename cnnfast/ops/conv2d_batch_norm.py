"""Convolution, batch normalisation with the batch's statistics, residual and activation."""

from typing import List, Optional, Tuple

import torch
from torch import Tensor

from cnnfast import _ext, reference
from cnnfast.ops import _backend

_conv2d_batch_norm = torch.ops.cnnfast.conv2d_batch_norm if _ext.AVAILABLE else reference.conv2d_batch_norm


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
) -> Tuple[Tensor, Tensor, Tensor]:
    """act((y - mean) / sqrt(var + eps) * bn_weight + bn_bias + residual) with y = conv(input, weight) + bias.

    Args:
        input: (N, Ci, H, W), any strides; CPU: float32 runs the kernels, other floating dtypes ATen.
        weight: (Co, Ci / groups, kh, kw), dtype and device of the input; on the CPU float32 weights and
            biases go with bfloat16 images, too.
        bias, bn_weight, bn_bias: (Co,) or None (0, 1 and 0).
        residual: the shape of the result, or None; added before the activation.
        stride, padding, dilation: (vertical, horizontal); outside torch.jit.script one int may stand for
            both.
        activation: "none", "relu" (keeps NaN) or another name of cnnfast.reference.activation.activate.

    Returns:
        output (N, Co, Ho, Wo), and the mean (Co,) and biased variance (Co,) of y over N, Ho and Wo. Only the
        output is differentiable, in all six tensors, once; nothing that is passed in is changed.

    Raises:
        RuntimeError: shapes, dtypes, devices or options that do not fit; names operator, argument and shapes.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, as in the course notes.
    """
    if not torch.jit.is_scripting():
        if _backend.needs_reference(input, weight):
            output, _, mean, var = reference.conv2d_batch_norm(
                input,
                weight,
                bias,
                bn_weight,
                bn_bias,
                residual,
                stride,
                padding,
                dilation,
                groups,
                eps,
                activation,
            )
            return output, mean, var
    output, _, mean, var = _conv2d_batch_norm(
        input,
        weight,
        bias,
        bn_weight,
        bn_bias,
        residual,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        eps=eps,
        activation=activation,
    )
    return output, mean, var
