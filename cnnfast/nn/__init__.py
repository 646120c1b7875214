"""Drop-in modules: layers that torch.nn has one by one, fused. They train, script, trace, compile and export.

A convolution's parameters sit in children `conv` (torch.nn.Conv2d) and `bn` (torch.nn.BatchNorm2d), so a
state_dict has keys such as `conv.weight` and `bn.running_mean`; `forward(input, residual=None)` adds the
residual before the activation that ends the layer.
"""

from cnnfast.nn.bn_conv import BNActConv2d
from cnnfast.nn.chains import NiNBlock, VGGBlock
from cnnfast.nn.conv import ConvAct2d, ConvReLU2d
from cnnfast.nn.conv_bn import ConvBN2d, ConvBNAct2d, ConvBNReLU2d
from cnnfast.nn.dense import DenseBlock, Transition
from cnnfast.nn.inception import Inception, InceptionA
from cnnfast.nn.linear import LinearAct, LinearReLU
from cnnfast.nn.linear_bn import LinearBNAct
from cnnfast.nn.norm import BatchNormAct2d, LocalResponseNorm
from cnnfast.nn.pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from cnnfast.nn.reshape import ReshapeImage
from cnnfast.nn.residual import PreActResidual, Residual, ResidualBlock

__all__ = [
    "AvgPool2d",
    "BNActConv2d",
    "BatchNormAct2d",
    "ConvAct2d",
    "ConvBN2d",
    "ConvBNAct2d",
    "ConvBNReLU2d",
    "ConvReLU2d",
    "DenseBlock",
    "GlobalAvgPool2d",
    "Inception",
    "InceptionA",
    "LinearAct",
    "LinearBNAct",
    "LinearReLU",
    "LocalResponseNorm",
    "MaxPool2d",
    "NiNBlock",
    "PreActResidual",
    "ReshapeImage",
    "Residual",
    "ResidualBlock",
    "Transition",
    "VGGBlock",
]
