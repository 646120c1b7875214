"""ResNet-18, and its second version with pre-activation blocks."""

from collections import OrderedDict
from typing import Callable

from torch import nn

from cnnfast.models.registry import register_model
from cnnfast.nn import (
    BatchNormAct2d,
    ConvAct2d,
    ConvBNReLU2d,
    GlobalAvgPool2d,
    LinearAct,
    MaxPool2d,
    PreActResidual,
    Residual,
)


@register_model
def resnet18(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    """ResNet-18: (N, in_channels, H, W) to (N, num_classes) logits, H and W from 32; 11,178,378 parameters.

    Source: He et al. 2015, "Deep residual learning for image recognition", arXiv:1512.03385, as in the course
    notes.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=ConvBNReLU2d(in_channels, 64, 7, 2, 3),
            pool1=MaxPool2d(3, 2, 1),
            **_stages(Residual),
            global_avg_pool=GlobalAvgPool2d(),
            flatten=nn.Flatten(),
            fc=LinearAct(512, num_classes, activation="none"),
        )
    )


@register_model
def resnet18_preact(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    """ResNet-18, version 2: (N, in_channels, H, W) to (N, num_classes) logits; 11,178,378 parameters.

    H and W from 32.

    Source: He et al. 2016, "Identity mappings in deep residual networks", arXiv:1603.05027, as in the course
    notes.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=ConvAct2d(in_channels, 64, 7, 2, 3, activation="none"),
            pool1=MaxPool2d(3, 2, 1),
            **_stages(PreActResidual),
            norm=BatchNormAct2d(512),
            global_avg_pool=GlobalAvgPool2d(),
            flatten=nn.Flatten(),
            fc=LinearAct(512, num_classes, activation="none"),
        )
    )


def _stages(block: Callable[..., nn.Module]) -> "OrderedDict[str, nn.Module]":
    """Four stages of two blocks; all but the first halve the image and double the channels."""
    stages = OrderedDict(stage1=nn.Sequential(block(64, 64), block(64, 64)))
    for i, channels in enumerate((128, 256, 512), start=2):
        first = block(channels // 2, channels, use_1x1conv=True, stride=2)
        stages[f"stage{i}"] = nn.Sequential(first, block(channels, channels))
    return stages
