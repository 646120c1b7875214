"""The networks of the course notes in plain torch.nn, without one fused layer.

They are what a user has before installing cnnfast: the baseline of every benchmark and the oracle of parity
checks. State-dict keys are those of the notes' own code, so a checkpoint made there loads as it is.
"""

from collections.abc import Callable

from torch import nn

from .chains import alexnet, alexnet_paper, lenet, nin, nin_single_1x1, vgg, vgg11, vgg11_small
from .densenet import densenet
from .inception import googlenet, inception_net
from .residual import residual_net, resnet18, resnet18_preact

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "lenet": lenet,
    "alexnet": alexnet,
    "alexnet_paper": alexnet_paper,
    "vgg11": vgg11,
    "vgg11_small": vgg11_small,
    "nin": nin,
    "nin_single_1x1": nin_single_1x1,
    "googlenet": googlenet,
    "inception_net": inception_net,
    "residual_net": residual_net,
    "resnet18": resnet18,
    "resnet18_preact": resnet18_preact,
    "densenet": densenet,
}

INPUT_SHAPES: dict[str, tuple[int, int, int]] = {
    "lenet": (1, 28, 28),
    "alexnet": (1, 224, 224),
    "alexnet_paper": (3, 224, 224),
    "vgg11": (1, 224, 224),
    "vgg11_small": (1, 224, 224),
    "nin": (1, 224, 224),
    "nin_single_1x1": (1, 224, 224),
    "googlenet": (1, 96, 96),
    "inception_net": (1, 28, 28),
    "residual_net": (1, 28, 28),
    "resnet18": (1, 96, 96),
    "resnet18_preact": (1, 96, 96),
    "densenet": (1, 96, 96),
}

__all__ = ["BUILDERS", "INPUT_SHAPES", "get_plain", "vgg", *BUILDERS]


def get_plain(name: str, **kwargs) -> nn.Module:
    """Builds a plain network by name; kwargs go to its builder. Unknown name: ValueError."""
    if name not in BUILDERS:
        raise ValueError(f"no plain network named {name!r}; known: {', '.join(BUILDERS)}")
    return BUILDERS[name](**kwargs)
