"""Blocks of several layers."""

from torch import Tensor, nn

from cnnfast.nn.conv import ConvReLU2d


class ResidualBlock(nn.Module):
    """relu(conv3(relu(conv3(x))) + x), both convolutions with padding 1: (N, C, H, W) to the same shape.

    Source: course notes, the plain residual block of the small residual net; He et al. 2015,
    arXiv:1512.03385.
    """

    def __init__(self, channels):
        super().__init__()
        self.conv1 = ConvReLU2d(channels, channels, 3, padding=1)
        self.conv2 = ConvReLU2d(channels, channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return self.conv2(self.conv1(input), input)
