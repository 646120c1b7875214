"""Local response normalisation in eager PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """input / (k + alpha * mean of input² over `size` channels)^beta; see cnnfast.ops.local_response_norm."""
    if input.dtype == torch.bfloat16 or input.dtype == torch.half:  # no average pooling of these on the CPU
        return F.local_response_norm(input.float(), size, alpha, beta, k).to(input.dtype)
    return F.local_response_norm(input, size, alpha, beta, k)
