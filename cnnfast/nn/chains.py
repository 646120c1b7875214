"""Blocks that are chains of convolutions: those of VGG and of Network in Network."""

import torch
from torch import Tensor, nn

from cnnfast.nn._as_one import InOrder, run_layers
from cnnfast.nn._checks import check_counts
from cnnfast.nn.conv import ConvReLU2d
from cnnfast.nn.pool import MaxPool2d


class VGGBlock(InOrder):
    """num_convs × (3×3 convolution with padding 1, ReLU), max pool 2/2.

    (N, in_channels, H, W) to (N, out_channels, H/2, W/2).

    Raises ValueError for numbers below 1.

    Source: Simonyan and Zisserman 2014, "Very deep convolutional networks", arXiv:1409.1556, as in the course
    notes.
    """

    def __init__(self, num_convs, in_channels, out_channels):
        check_counts("VGGBlock", num_convs=num_convs, in_channels=in_channels, out_channels=out_channels)
        convs = [
            ConvReLU2d(out_channels if i else in_channels, out_channels, 3, padding=1)
            for i in range(num_convs)
        ]
        super().__init__(*convs, MaxPool2d(2, 2))


class NiNBlock(nn.Sequential):
    """Convolution, ReLU, then num_1x1 × (1×1 convolution, ReLU).

    kernel_size, stride and padding are those of the first; (N, in_channels, H, W) to (N, out_channels, Ho,
    Wo). Two 1×1 convolutions as in the paper, one in the notes' ablation. While training in bfloat16 on a CPU
    all of them are one operator.

    Raises ValueError for channels below 1 or num_1x1 below 0.

    Source: Lin, Chen and Yan 2013, "Network in network", arXiv:1312.4400, as in the course notes.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, num_1x1=2):
        if num_1x1 < 0:
            raise ValueError(f"NiNBlock: num_1x1 must be at least 0, not {num_1x1}")
        super().__init__(
            ConvReLU2d(in_channels, out_channels, kernel_size, stride, padding),
            *[ConvReLU2d(out_channels, out_channels, 1) for _ in range(num_1x1)],
        )

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return run_layers(list(self), input)
        for layer in self:
            input = layer(input)
        return input
