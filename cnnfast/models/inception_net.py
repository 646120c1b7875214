"""The small Inception network."""

import torch
from torch import Tensor, nn

from cnnfast.models.registry import register_model
from cnnfast.nn import ConvReLU2d, InceptionA, LinearAct, MaxPool2d
from cnnfast.nn._as_one import run_in_order


class InceptionNet(nn.Module):
    """conv5 →10, max-pool, InceptionA, conv5 →20, max-pool, InceptionA, fully connected.

    The notes' ReLU follows the max-pool. Here it is the convolution's: the two change places, values and
    gradients stay.

    Source: course notes, the Inception network for 28×28 images; Szegedy et al. 2015, arXiv:1512.00567.
    """

    plain_prefixes = ("conv1", "conv2", "incep1", "incep2", "fc")  # the notes' order; load_plain_state_dict

    def __init__(self, in_channels: int = 1, num_classes: int = 10):
        super().__init__()
        self.conv1 = ConvReLU2d(in_channels, 10, 5)
        self.pool1 = MaxPool2d(2)
        self.incep1 = InceptionA(10)
        self.conv2 = ConvReLU2d(88, 20, 5)
        self.pool2 = MaxPool2d(2)
        self.incep2 = InceptionA(20)
        self.flatten = nn.Flatten()
        self.fc = LinearAct(1408, num_classes, activation="none")

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            x = self.pool1(self.conv1(input))
        else:
            x = run_in_order([self.conv1, self.pool1], input)
        x = self.incep1(x)
        x = self.incep2(self.pool2(self.conv2(x)))
        return self.fc(self.flatten(x))


@register_model
def inception_net(in_channels: int = 1, num_classes: int = 10) -> InceptionNet:
    """The small Inception net: (N, in_channels, 28, 28) to (N, num_classes) logits; 97,298 parameters."""
    return InceptionNet(in_channels, num_classes)
