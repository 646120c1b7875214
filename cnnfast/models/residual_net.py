"""The small residual net."""

import torch
from torch import Tensor, nn

from cnnfast.models.registry import register_model
from cnnfast.nn import ConvReLU2d, LinearAct, MaxPool2d, ResidualBlock
from cnnfast.nn._as_one import run_in_order


class ResidualNet(nn.Module):
    """conv5 →16, max-pool, residual block(16), conv5 →32, max-pool, residual block(32), fully connected.

    Source: course notes, the residual net for 28×28 images; He et al. 2015, arXiv:1512.03385.
    """

    plain_prefixes = (
        "conv1",
        "conv2",
        "rblock1",
        "rblock2",
        "fc",
    )  # the notes' order; see load_plain_state_dict

    def __init__(self, in_channels: int = 1, num_classes: int = 10):
        super().__init__()
        self.conv1 = ConvReLU2d(in_channels, 16, 5)
        self.pool1 = MaxPool2d(2)
        self.rblock1 = ResidualBlock(16)
        self.conv2 = ConvReLU2d(16, 32, 5)
        self.pool2 = MaxPool2d(2)
        self.rblock2 = ResidualBlock(32)
        self.flatten = nn.Flatten()
        self.fc = LinearAct(512, num_classes, activation="none")

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            x = self.pool1(self.conv1(input))
        else:
            x = run_in_order([self.conv1, self.pool1], input)
        x = self.rblock1(x)
        x = self.rblock2(self.pool2(self.conv2(x)))
        return self.fc(self.flatten(x))


@register_model
def residual_net(in_channels: int = 1, num_classes: int = 10) -> ResidualNet:
    """The small residual net: (N, in_channels, 28, 28) to (N, num_classes) logits; 41,514 parameters."""
    return ResidualNet(in_channels, num_classes)
