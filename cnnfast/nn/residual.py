"""Residual blocks. Sources: He et al. 2015, arXiv:1512.03385, and He et al. 2016, arXiv:1603.05027."""

from torch import Tensor, nn

from cnnfast.nn._checks import check_addition
from cnnfast.nn.bn_conv import BNActConv2d
from cnnfast.nn.conv import ConvAct2d, ConvReLU2d
from cnnfast.nn.conv_bn import ConvBNReLU2d
from cnnfast.nn.norm import BatchNormAct2d


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


class Residual(nn.Module):
    """conv3, BN, ReLU, conv3, BN, + shortcut, ReLU: (N, in_channels, H, W) to (N, out_channels, H/s, W/s).

    stride s is that of the first convolution. The shortcut is the input itself, or with use_1x1conv a 1×1
    convolution of it with the same stride.

    Raises ValueError where the input would be added to an output of another shape; shows the right call.

    Source: He et al. 2015, arXiv:1512.03385, as in the course notes.
    """

    # the notes' order; see load_plain_state_dict
    plain_prefixes = ("conv1.conv", "conv2.conv", "shortcut", "conv1.bn", "conv2.bn")

    def __init__(self, in_channels, out_channels, use_1x1conv=False, stride=1):
        super().__init__()
        check_addition("Residual", in_channels, out_channels, use_1x1conv, stride)
        self.conv1 = ConvBNReLU2d(in_channels, out_channels, 3, stride, 1)
        self.conv2 = ConvBNReLU2d(out_channels, out_channels, 3, 1, 1)
        self.shortcut = (
            ConvAct2d(in_channels, out_channels, 1, stride, activation="none")
            if use_1x1conv
            else nn.Identity()
        )

    def forward(self, input: Tensor) -> Tensor:
        return self.conv2(self.conv1(input), self.shortcut(input))


class PreActResidual(nn.Module):
    """BN, ReLU, conv3, BN, ReLU, conv3, + shortcut: (N, in_channels, H, W) to (N, out_channels, H/s, W/s).

    stride s is that of the first convolution. The shortcut is the input itself, or with use_1x1conv a 1×1
    convolution of the first activation with the same stride. Nothing follows the sum.

    Raises ValueError where the input would be added to an output of another shape; shows the right call.

    Source: He et al. 2016, "Identity mappings in deep residual networks", arXiv:1603.05027, as in the course
    notes.
    """

    def __init__(self, in_channels, out_channels, use_1x1conv=False, stride=1):
        super().__init__()
        check_addition("PreActResidual", in_channels, out_channels, use_1x1conv, stride)
        if use_1x1conv:  # two convolutions read the first activation: it is computed once, for both
            self.norm1 = BatchNormAct2d(in_channels)
            self.conv1 = ConvAct2d(in_channels, out_channels, 3, stride, 1, activation="none")
        else:  # one does, on its way in
            self.norm1 = nn.Identity()
            self.conv1 = BNActConv2d(in_channels, out_channels, 3, stride, 1)
        self.conv2 = BNActConv2d(out_channels, out_channels, 3, 1, 1)
        self.shortcut = (
            ConvAct2d(in_channels, out_channels, 1, stride, activation="none")
            if use_1x1conv
            else nn.Identity()
        )

    def forward(self, input: Tensor) -> Tensor:
        input = self.norm1(input)
        return self.conv2(self.conv1(input), self.shortcut(input))
