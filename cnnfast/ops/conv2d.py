"""Convolution with scale, bias, residual and activation in one pass."""

from typing import List, Optional

import torch
from torch import Tensor

from cnnfast import _ext, reference
from cnnfast.ops import _backend

_conv2d = torch.ops.cnnfast.conv2d if _ext.AVAILABLE else reference.conv2d


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
    """act(conv(input, weight) * scale + bias + residual), the convolution being torch.nn.functional.conv2d's.

    With scale = gamma / sqrt(var + eps) and a matching bias this is convolution and batch normalisation in
    eval mode.

    Large 3×3 and 5×5 convolutions in float32 with stride 1 run by Winograd's algorithm. Where a gradient may
    be recorded its tiles have 2×2 output pixels, and errors are those of direct convolution; under no_grad,
    and in graphs of torch.compile, they have up to 4×4, with errors of some 1e-6 of the largest value. NaN
    or Inf reach whole tiles.

    Args:
        input: (N, Ci, H, W), any strides; CPU: float32 runs the kernels, other floating dtypes ATen.
        weight: (Co, Ci / groups, kh, kw), dtype and device of the input; on the CPU float32 weights and
            biases go with bfloat16 images, too.
        bias, scale: (Co,) or None.
        residual: the shape of the result, or None; added before the activation.
        stride, padding, dilation: (vertical, horizontal); outside torch.jit.script one int may stand for
            both.
        activation: "none", "relu" (keeps NaN) or another name of cnnfast.reference.activation.activate.

    Returns:
        (N, Co, Ho, Wo) with Ho = (H + 2 padding - dilation (kh - 1) - 1) // stride + 1. With the extension it
        is laid out channels_last. Never an alias of an argument. Differentiable in all five tensors, once.

    Raises:
        RuntimeError: shapes, dtypes, devices or options that do not fit; names operator, argument and shapes.

    Source: course notes on LeNet to ResNet; folding of batch normalisation: Jacob et al. 2018,
    arXiv:1712.05877.
    """
    if not torch.jit.is_scripting():
        other = _backend.other_conv2d(input, weight)
        if other is not None:
            return other(input, weight, bias, scale, residual, stride, padding, dilation, groups, activation)
    return _conv2d(
        input,
        weight,
        bias,
        scale,
        residual,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        activation=activation,
    )
