"""GoogLeNet."""

from collections import OrderedDict

from torch import nn

from cnnfast.models.registry import register_model
from cnnfast.nn import ConvAct2d, ConvReLU2d, GlobalAvgPool2d, Inception, LinearAct, MaxPool2d
from cnnfast.nn._as_one import InOrder


@register_model
def googlenet(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    """GoogLeNet: (N, in_channels, 96, 96) to (N, num_classes) logits; 5,977,530 parameters.

    Other image sizes work as well.

    Source: Szegedy et al. 2014, "Going deeper with convolutions", arXiv:1409.4842, as in the course notes:
    without auxiliary classifiers.
    """
    return InOrder(
        OrderedDict(
            conv1=ConvReLU2d(in_channels, 64, 7, 2, 3),
            pool1=MaxPool2d(3, 2, 1),
            conv2_reduce=ConvAct2d(64, 64, 1, activation="none"),  # no ReLU here nor behind conv2:
            conv2=ConvAct2d(64, 192, 3, padding=1, activation="none"),  # so it stands in the notes
            pool2=MaxPool2d(3, 2, 1),
            inception3a=Inception(192, 64, (96, 128), (16, 32), 32),
            inception3b=Inception(256, 128, (128, 192), (32, 96), 64),
            pool3=MaxPool2d(3, 2, 1),
            inception4a=Inception(480, 192, (96, 208), (16, 48), 64),
            inception4b=Inception(512, 160, (112, 224), (24, 64), 64),
            inception4c=Inception(512, 128, (128, 256), (24, 64), 64),
            inception4d=Inception(512, 112, (144, 288), (32, 64), 64),
            inception4e=Inception(528, 256, (160, 320), (32, 128), 128),
            pool4=MaxPool2d(3, 2, 1),
            inception5a=Inception(832, 256, (160, 320), (32, 128), 128),
            inception5b=Inception(832, 384, (192, 384), (48, 128), 128),
            global_avg_pool=GlobalAvgPool2d(),
            flatten=nn.Flatten(),
            fc=LinearAct(1024, num_classes, activation="none"),
        )
    )
