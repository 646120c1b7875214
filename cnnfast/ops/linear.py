"""Fully connected layer with its activation."""

from typing import Optional

import torch
from torch import Tensor

from cnnfast import _ext, reference
from cnnfast.ops import _backend

_linear = torch.ops.cnnfast.linear if _ext.AVAILABLE else reference.linear


def linear(input: Tensor, weight: Tensor, bias: Optional[Tensor] = None, activation: str = "none") -> Tensor:
    """act(input @ weight.T + bias).

    Args:
        input: (..., in), any strides; CPU: float32 and bfloat16 run the kernels (fewer than 512 rows of
            bfloat16 ATen's where it multiplies that), other floating dtypes ATen.
        weight: (out, in), dtype and device of the input; float32 also with bfloat16 on the CPU.
        bias: (out,) or None, as weight.
        activation: "none", "relu" (keeps NaN) or another name of cnnfast.reference.activation.activate.

    Returns:
        (..., out), contiguous, differentiable once in all three tensors.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit; names operator, argument and shapes.

    Source: course notes, the fully connected layers of LeNet and its successors; torch.nn.functional.linear.
    """
    if not torch.jit.is_scripting():
        if _backend.needs_reference(input, weight):
            return reference.linear(input, weight, bias, activation)
    return _linear(input, weight, bias, activation=activation)
