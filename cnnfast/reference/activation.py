"""The activations that a fused layer can end with."""

import torch
from torch import Tensor


def activate(input: Tensor, activation: str) -> Tensor:
    """Apply "none", "relu" (keeps NaN) or "sigmoid"; any shape. RuntimeError for other names."""
    if activation == "none":
        return input
    if activation == "relu":
        return torch.relu(input)
    if activation == "sigmoid":
        return torch.sigmoid(input)
    raise RuntimeError("activation must be 'none', 'relu' or 'sigmoid', not '" + activation + "'")
