"""Local response normalisation."""

import torch
from torch import Tensor

from cnnfast import _ext, reference
from cnnfast.ops import _backend

_local_response_norm = (
    torch.ops.cnnfast.local_response_norm if _ext.AVAILABLE else reference.local_response_norm
)


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """input / (k + alpha / size * s)^beta, s the sum of input² over `size` channels.

    As torch.nn.LocalResponseNorm: the window of channel c is [c - size // 2, c + (size - 1) // 2], and
    channels beyond the ends count as zeros.

    Args:
        input: (N, C, H, W), any strides; CPU: float32 runs the kernels, other floating dtypes ATen.
        size: at least 1.
        alpha, beta, k: beta of 0.5, 0.75 and 1 avoid a power function per value.

    Returns:
        (N, C, H, W), differentiable once. Under autocast float32, as PyTorch's.

    Raises:
        RuntimeError: shapes, dtypes or sizes that do not fit; names operator, argument and shape.

    Source: Krizhevsky, Sutskever and Hinton 2012, section 3.3, as in the course notes on AlexNet.
    """
    if not torch.jit.is_scripting():
        if _backend.needs_reference(input, input):
            return reference.local_response_norm(input, size, alpha, beta, k)
    return _local_response_norm(input, size, alpha, beta, k)
