"""Parallel branches of convolutions and poolings, concatenated on channels, in eager PyTorch."""

from typing import List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def _activate(input: Tensor, activation: int) -> Tensor:
    if activation == 1:
        return torch.relu(input)
    if activation == 2:
        return torch.sigmoid(input)
    return input


def inception(
    input: Tensor, weights: List[Tensor], biases: List[Optional[Tensor]], branches: List[int]
) -> Tensor:
    """The branches' outputs, concatenated on channels; see cnnfast.ops.inception."""
    outputs: List[Tensor] = []
    position, conv = 1, 0
    for _ in range(branches[0]):
        output = input
        stages = branches[position]
        position += 1
        for _ in range(stages):
            kind, activation = branches[position], branches[position + 1]
            kernel = branches[position + 2 : position + 4]
            stride = branches[position + 4 : position + 6]
            padding = branches[position + 6 : position + 8]
            option = branches[position + 8]
            position += 9
            if kind == 0:
                output = F.conv2d(output, weights[conv], biases[conv], stride, padding, [1, 1], option)
                conv += 1
            elif kind == 1:
                output = F.max_pool2d(output, kernel, stride, padding)
            else:
                output = F.avg_pool2d(output, kernel, stride, padding, False, option != 0)
            output = _activate(output, activation)
        outputs.append(output)
    return torch.cat(outputs, 1)
