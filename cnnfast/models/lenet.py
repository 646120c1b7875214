"""LeNet."""

from collections import OrderedDict

from torch import nn

from cnnfast.models.registry import register_model
from cnnfast.nn import AvgPool2d, ConvAct2d, LinearAct, ReshapeImage
from cnnfast.nn._as_one import InOrder


@register_model
def lenet(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    """LeNet: (N, in_channels, 28, 28), or such images flat, to (N, num_classes) logits; 61,706 parameters.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", as in the course
    notes.
    """
    return InOrder(
        OrderedDict(
            reshape=ReshapeImage(in_channels, 28, 28),
            conv1=ConvAct2d(in_channels, 6, 5, padding=2, activation="sigmoid"),
            pool1=AvgPool2d(2, 2),
            conv2=ConvAct2d(6, 16, 5, activation="sigmoid"),
            pool2=AvgPool2d(2, 2),
            flatten=nn.Flatten(),
            fc1=LinearAct(400, 120, activation="sigmoid"),
            fc2=LinearAct(120, 84, activation="sigmoid"),
            fc3=LinearAct(84, num_classes, activation="none"),
        )
    )
