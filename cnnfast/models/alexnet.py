"""AlexNet: the one network that fits one GPU, and the paper's for two."""

from collections import OrderedDict

from torch import nn

from cnnfast.models.registry import register_model
from cnnfast.nn import ConvReLU2d, LinearAct, LinearReLU, LocalResponseNorm, MaxPool2d
from cnnfast.nn._as_one import InOrder


@register_model
def alexnet(in_channels: int = 1, num_classes: int = 10, hidden_layers: int = 1) -> nn.Sequential:
    """AlexNet as in the notes: (N, in_channels, 224, 224) to (N, num_classes) logits; 29,983,434 parameters.

    hidden_layers is the number of fully connected layers of 4096 in front of the last.

    Raises ValueError for hidden_layers below 1.

    Source: Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural
    networks", as in the course notes: without groups and local response normalisation.
    """
    return InOrder(
        OrderedDict(
            conv1=ConvReLU2d(in_channels, 96, 11, 4),
            pool1=MaxPool2d(3, 2),
            conv2=ConvReLU2d(96, 256, 5, padding=2),
            pool2=MaxPool2d(3, 2),
            conv3=ConvReLU2d(256, 384, 3, padding=1),
            conv4=ConvReLU2d(384, 384, 3, padding=1),
            conv5=ConvReLU2d(384, 256, 3, padding=1),
            pool5=MaxPool2d(3, 2),
            flatten=nn.Flatten(),
            fc=_fully_connected(256 * 5 * 5, hidden_layers, num_classes),
        )
    )


@register_model
def alexnet_paper(in_channels: int = 3, num_classes: int = 1000) -> nn.Sequential:
    """AlexNet for two GPUs: (N, in_channels, 224, 224) to (N, num_classes) logits; 60,965,224 parameters.

    Two groups in the second, fourth and fifth convolution; local response normalisation behind the first two.
    The padding of 2 in the first gives the paper's 55×55 maps, which without padding need 227×227 images.

    Source: Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural
    networks".
    """
    return nn.Sequential(
        OrderedDict(
            conv1=ConvReLU2d(in_channels, 96, 11, 4, padding=2),
            norm1=LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0),
            pool1=MaxPool2d(3, 2),
            conv2=ConvReLU2d(96, 256, 5, padding=2, groups=2),
            norm2=LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0),
            pool2=MaxPool2d(3, 2),
            conv3=ConvReLU2d(256, 384, 3, padding=1),
            conv4=ConvReLU2d(384, 384, 3, padding=1, groups=2),
            conv5=ConvReLU2d(384, 256, 3, padding=1, groups=2),
            pool5=MaxPool2d(3, 2),
            flatten=nn.Flatten(),
            fc=_fully_connected(256 * 6 * 6, 2, num_classes),
        )
    )


def _fully_connected(in_features: int, hidden_layers: int, num_classes: int) -> nn.Sequential:
    if hidden_layers < 1:
        raise ValueError(f"alexnet: hidden_layers must be at least 1, not {hidden_layers}")
    layers = []
    for _ in range(hidden_layers):
        layers += [LinearReLU(in_features, 4096), nn.Dropout(0.5)]
        in_features = 4096
    return nn.Sequential(*layers, LinearAct(4096, num_classes, activation="none"))
