"""Drop-in modules: layers that torch.nn has one by one, fused. They train, script, trace, compile and export.

A convolution's parameters sit in children `conv` (torch.nn.Conv2d) and `bn` (torch.nn.BatchNorm2d), so a
state_dict has keys such as `conv.weight` and `bn.running_mean`; `forward(input, residual=None)` adds the
residual before the activation.
"""

from cnnfast.nn.blocks import ResidualBlock
from cnnfast.nn.conv import ConvAct2d, ConvReLU2d
from cnnfast.nn.conv_bn import ConvBN2d, ConvBNAct2d, ConvBNReLU2d
from cnnfast.nn.linear import LinearAct, LinearReLU
from cnnfast.nn.pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from cnnfast.nn.reshape import ReshapeImage

__all__ = [
    "AvgPool2d",
    "ConvAct2d",
    "ConvBN2d",
    "ConvBNAct2d",
    "ConvBNReLU2d",
    "ConvReLU2d",
    "GlobalAvgPool2d",
    "LinearAct",
    "LinearReLU",
    "MaxPool2d",
    "ReshapeImage",
    "ResidualBlock",
]
