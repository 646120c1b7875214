"""Dense block, layer by layer with a concatenation each, in eager PyTorch."""

from typing import List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnfast.reference.activation import activate


def dense_block(
    input: Tensor,
    weights: List[Tensor],
    biases: List[Optional[Tensor]],
    bn_weights: List[Optional[Tensor]],
    bn_biases: List[Optional[Tensor]],
    running_means: List[Optional[Tensor]],
    running_vars: List[Optional[Tensor]],
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "relu",
) -> Tensor:
    """Every layer reads all channels so far and adds its own behind them; see cnnfast.ops.dense_block."""
    features = input
    for i, weight in enumerate(weights):
        mean, var = running_means[i], running_vars[i]
        use_batch = training or mean is None or var is None
        x = F.batch_norm(features, mean, var, bn_weights[i], bn_biases[i], use_batch, momentum, eps)
        padding = [weight.size(2) // 2, weight.size(3) // 2]
        y = F.conv2d(activate(x, activation), weight, biases[i], [1, 1], padding)
        features = torch.cat([features, y], 1)
    return features
