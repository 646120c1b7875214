"""DenseNet."""

from collections import OrderedDict

from torch import nn

from cnnfast.models.registry import register_model
from cnnfast.nn import (
    BatchNormAct2d,
    ConvBNReLU2d,
    DenseBlock,
    GlobalAvgPool2d,
    LinearAct,
    MaxPool2d,
    Transition,
)


@register_model
def densenet(in_channels: int = 1, num_classes: int = 10, growth: int = 32, layers: int = 4) -> nn.Sequential:
    """DenseNet: (N, in_channels, H, W) to (N, num_classes) logits, H and W from 32; 758,226 parameters.

    Four dense blocks of `layers` layers that add `growth` channels each; transitions between them halve image
    and channels. Channels with the defaults: 64 → 192 → 96 → 224 → 112 → 240 → 120 → 248.

    Source: Huang et al. 2017, "Densely connected convolutional networks", arXiv:1608.06993, as in the course
    notes.
    """
    channels = 64
    blocks = OrderedDict()
    for i in range(1, 5):
        blocks[f"dense{i}"] = DenseBlock(layers, channels, growth)
        channels += layers * growth
        if i < 4:
            blocks[f"transition{i}"] = Transition(channels, channels // 2)
            channels //= 2
    return nn.Sequential(
        OrderedDict(
            conv1=ConvBNReLU2d(in_channels, 64, 7, 2, 3),
            pool1=MaxPool2d(3, 2, 1),
            **blocks,
            norm=BatchNormAct2d(channels),
            global_avg_pool=GlobalAvgPool2d(),
            flatten=nn.Flatten(),
            fc=LinearAct(channels, num_classes, activation="none"),
        )
    )
