"""How each network is trained: the settings of the course notes, per network, as defaults."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any


class TrainingError(RuntimeError):
    """A training that cannot start or go on. The message says what to change."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the curve of a training run, besides the machine it runs on.

    `momentum` counts for SGD only; `resize` None leaves the images at 28×28; `dtype` "bfloat16" is autocast;
    `schedule` "linear" lets the learning rate fall to zero, step by step, over all epochs;
    `augment` flips, crops and recolours training images at random; `train_images` trains on that many images,
    drawn once from the seed, None on all;
    `fuse` False trains the network's twin in plain torch.nn, to compare with.
    """

    model: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    momentum: float = 0.0
    resize: int | None = None
    schedule: str = "constant"
    dtype: str = "float32"
    seed: int = 0
    fuse: bool = True
    augment: bool = False
    train_images: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if not self.lr > 0:
            raise TrainingError(f"lr is {self.lr}, it must be above 0")
        if not 0 <= self.momentum < 1:
            raise TrainingError(f"momentum is {self.momentum}, it must be in [0, 1)")
        for name in ("resize", "train_images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}, it must be at least 1")
        _choice("optimizer", self.optimizer, OPTIMIZERS)
        _choice("dtype", self.dtype, DTYPES)
        _choice("schedule", self.schedule, SCHEDULES)

    def difference(self, other: Mapping[str, Any]) -> str:
        """In words, what makes a curve differ from one under the settings `other`; empty if nothing does.

        What `other` does not name, for being older than the setting, is as it was before: the default.
        """
        mine = asdict(self)
        other = {**{field.name: field.default for field in fields(self)}, **other}
        more_epochs_allowed = self.schedule == "constant"
        names = [field.name for field in fields(self) if field.name != "epochs" or not more_epochs_allowed]
        return ", ".join(f"{n} {other[n]!r} → {mine[n]!r}" for n in names if other[n] != mine[n])


OPTIMIZERS = ("sgd", "adam")
DTYPES = ("float32", "bfloat16")
SCHEDULES = ("constant", "linear")

_SMALL = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.5, "batch_size": 64, "epochs": 10}
_ADAM = {"optimizer": "adam", "lr": 0.001, "batch_size": 128, "epochs": 5}
_AT_224 = {**_ADAM, "resize": 224}
_AT_96 = {**_ADAM, "resize": 96}
_ALEXNET = {**_AT_224, "augment": True}

# Optimiser, lr, momentum, resize and AlexNet's augmentation are the notes' where they give them. They leave
# open the optimisers of LeNet, ResNet and DenseNet (Adam, as for their neighbours: with LeNet's sigmoids, SGD
# stays on the first plateau for epochs) and some batch sizes.
DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "lenet": {**_ADAM, "batch_size": 256, "epochs": 10},
        "alexnet": _ALEXNET,
        "alexnet_paper": _ALEXNET,
        "vgg11": {**_AT_224, "batch_size": 64},
        "vgg11_small": {**_AT_224, "batch_size": 64},
        "nin": {**_AT_224, "lr": 0.002},
        "nin_single_1x1": {**_AT_224, "lr": 0.002},
        "googlenet": _AT_96,
        "inception_net": _SMALL,
        "residual_net": _SMALL,
        "resnet18": _AT_96,
        "resnet18_preact": _AT_96,
        "densenet": _AT_96,
    }
)

# What get_model needs for one grey channel and ten classes where that is not its default.
MODEL_ARGUMENTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"alexnet_paper": {"in_channels": 1, "num_classes": 10}}
)


def settings_for(model: str, **changes: Any) -> Settings:
    """The default settings of a network, with `changes` in place; a change of None is left out.

    A network that the table does not know is trained with Adam at 28×28.
    """
    settings = Settings(model=model, **DEFAULTS.get(model, _ADAM))
    return replace(settings, **{name: value for name, value in changes.items() if value is not None})


def image_size(model: str) -> int:
    """Height and width of the images that a network is trained on by default."""
    return DEFAULTS.get(model, _ADAM).get("resize", 28)


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise TrainingError(f"{name} is {value!r}, it must be one of {', '.join(allowed)}")
