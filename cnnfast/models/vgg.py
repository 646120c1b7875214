"""VGG: blocks of 3×3 convolutions."""

from collections import OrderedDict
from typing import Sequence, Tuple

from torch import nn

from cnnfast.models.registry import register_model
from cnnfast.nn import LinearAct, LinearReLU, VGGBlock

_VGG11 = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))


def vgg(
    conv_arch: Sequence[Tuple[int, int, int]],
    fc_features: int,
    fc_hidden_units: int = 4096,
    num_classes: int = 10,
) -> nn.Sequential:
    """A network of the VGG family: images to (N, num_classes) logits.

    conv_arch: (number of convolutions, in channels, out channels) of every block; each halves the image.
    fc_features: channels · height · width behind the last block.

    Source: Simonyan and Zisserman 2014, "Very deep convolutional networks for large-scale image recognition",
    arXiv:1409.1556, as in the course notes.
    """
    blocks = OrderedDict((f"block{i}", VGGBlock(*block)) for i, block in enumerate(conv_arch, start=1))
    return nn.Sequential(
        OrderedDict(
            **blocks,
            flatten=nn.Flatten(),
            fc1=LinearReLU(fc_features, fc_hidden_units),
            dropout1=nn.Dropout(0.5),
            fc2=LinearReLU(fc_hidden_units, fc_hidden_units),
            dropout2=nn.Dropout(0.5),
            fc3=LinearAct(fc_hidden_units, num_classes, activation="none"),
        )
    )


@register_model
def vgg11(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    """VGG-11: (N, in_channels, 224, 224) to (N, num_classes) logits; 128,806,154 parameters. See vgg."""
    return _narrowed(in_channels, num_classes, ratio=1)


@register_model
def vgg11_small(in_channels: int = 1, num_classes: int = 10, ratio: int = 8) -> nn.Sequential:
    """VGG-11 with every width divided by `ratio`; 2,018,346 parameters with the default. See vgg.

    Raises ValueError unless ratio divides every width (64 and its multiples).
    """
    return _narrowed(in_channels, num_classes, ratio)


def _narrowed(in_channels: int, num_classes: int, ratio: int) -> nn.Sequential:
    if ratio < 1 or 64 % ratio:
        raise ValueError(f"vgg11_small: ratio must divide 64, not {ratio}; write ratio=8")
    arch = []
    for num_convs, width in _VGG11:
        arch.append((num_convs, in_channels, width // ratio))
        in_channels = width // ratio
    return vgg(tuple(arch), 512 // ratio * 7 * 7, 4096 // ratio, num_classes)
