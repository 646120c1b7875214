"""The plain networks of the notes at sizes that keep tests quick, for the tests of fuse and freeze."""

from collections.abc import Callable

import torch
from torch import nn

import cnnfast
from cnnfast.benchmarking.plain import INPUT_SHAPES, get_plain, vgg

from .networks import liven

SMALL_VGG = ((1, 1, 8), (1, 8, 16), (2, 16, 24), (2, 24, 32), (2, 32, 32))
_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "vgg11": lambda: vgg(SMALL_VGG, 32, 40)  # vgg11's layers, narrow
}
_SHAPES = {
    "vgg11": (1, 32, 32),
    "googlenet": (1, 40, 36),
    "resnet18": (1, 33, 40),
    "resnet18_preact": (1, 33, 40),
    "densenet": (1, 40, 32),
    "nin": (1, 96, 100),
    "nin_single_1x1": (1, 96, 100),
}
PLAIN = {name: _SHAPES.get(name, shape) for name, shape in INPUT_SHAPES.items()}
HEAVY = ("alexnet", "alexnet_paper", "vgg11_small")  # one image is enough
SIZES_OF = ("googlenet", "resnet18", "resnet18_preact", "densenet", "nin", "nin_single_1x1")  # any image size


def make_plain(name: str) -> nn.Module:
    """A plain network with batch norms whose statistics and factors are no ones and zeros."""
    return liven(_BUILDERS.get(name, lambda: get_plain(name))())


def make_ours(name: str) -> nn.Module:
    """The same network of cnnfast.models."""
    if name == "vgg11":
        return liven(cnnfast.models.vgg(SMALL_VGG, 32, 40))
    return liven(cnnfast.models.get_model(name))


def plain_images(name: str, batch: int = 2) -> torch.Tensor:
    return torch.randn(1 if name in HEAVY else batch, *PLAIN[name])
