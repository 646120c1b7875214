"""Network in Network."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from cnnfast.models.registry import register_model
from cnnfast.nn import GlobalAvgPool2d, MaxPool2d, NiNBlock
from cnnfast.nn._as_one import run_blocks


class NiN(nn.Sequential):
    """Layers one behind the other; a block and the pooling behind it are one operator where NiNBlock is."""

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return run_blocks(self, NiNBlock, input)
        for layer in self:
            input = layer(input)
        return input


@register_model
def nin(in_channels: int = 1, num_classes: int = 10, convs_1x1: int = 2) -> nn.Sequential:
    """Network in Network: (N, in_channels, 224, 224) to (N, num_classes) logits; 1,992,166 parameters.

    convs_1x1 is the number of 1×1 convolutions of every block. There is no fully connected layer: the last
    block gives one map per class.

    Source: Lin, Chen and Yan 2013, "Network in network", arXiv:1312.4400, as in the course notes.
    """
    return NiN(
        OrderedDict(
            block1=NiNBlock(in_channels, 96, 11, 4, 0, convs_1x1),
            pool1=MaxPool2d(3, 2),
            block2=NiNBlock(96, 256, 5, 1, 2, convs_1x1),
            pool2=MaxPool2d(3, 2),
            block3=NiNBlock(256, 384, 3, 1, 1, convs_1x1),
            pool3=MaxPool2d(3, 2),
            dropout=nn.Dropout(0.5),
            block4=NiNBlock(384, num_classes, 3, 1, 1, convs_1x1),
            global_avg_pool=GlobalAvgPool2d(),
            flatten=nn.Flatten(),
        )
    )


@register_model
def nin_single_1x1(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    """The notes' ablation of nin: one 1×1 convolution in every block; 1,769,112 parameters."""
    return nin(in_channels, num_classes, convs_1x1=1)
