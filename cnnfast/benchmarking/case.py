"""What is measured: a network with its input, and one batch, mode and precision of it."""

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import libraries

MODES = ("inference", "training")
# Largest difference from the float64 reference, as a part of its largest value. Wide enough for Winograd; in
# bfloat16 for networks whose weights are bfloat16 too.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
# In bfloat16 so many times eager autocast's own difference is right as well: through fifty layers it grows,
# and of thousands of outputs the one that differs most is a matter of chance.
AUTOCAST_FACTOR = 2
# How many tolerances answers to different images must be apart.
SPREAD = {"float32": 10, "bfloat16": 4}
DTYPES = tuple(TOLERANCE)
# LeNet's sigmoids squash differences between images; wider weights keep them visible to the parity check.
_GAIN = {"lenet": 6.0}


@dataclass(frozen=True)
class ModelSpec:
    """A network to measure.

    `build` names a plain network (`cnnfast.benchmarking.plain.BUILDERS`), or is "torchvision:network",
    "timm:network", or "package.module:callable" for one that returns an nn.Module; `input_shape` is
    (C, H, W), optional for all but the last. `state_dict_path` names a .safetensors or torch.save file with
    the network's own keys; without one, weights are random.
    `gain` widens random weights.
    """

    build: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None
    state_dict_path: str | None = None
    label: str | None = None
    gain: float | None = None

    def resolved(self) -> "ModelSpec":
        """The same with every default filled in; ValueError where one is missing."""
        shape = self.input_shape
        if ":" not in self.build:
            from .plain import INPUT_SHAPES

            if self.build not in INPUT_SHAPES:
                known = ", ".join(INPUT_SHAPES)
                raise ValueError(
                    f"no network named {self.build!r}; known: {known}, "
                    "torchvision:NETWORK, timm:NETWORK, "
                    "or ModelSpec('package.module:callable', input_shape=(C, H, W))"
                )
            shape = shape or INPUT_SHAPES[self.build]
        elif libraries.is_library_name(self.build):
            libraries.check(self.build)
            shape = shape or libraries.input_shape(self.build)
        if shape is None:
            raise ValueError(f"ModelSpec({self.build!r}) needs input_shape=(C, H, W)")
        if self.state_dict_path is not None and not Path(self.state_dict_path).is_file():
            raise ValueError(f"state_dict_path: no file {self.state_dict_path}")
        return replace(
            self,
            kwargs=dict(self.kwargs),
            input_shape=tuple(int(size) for size in shape),
            state_dict_path=str(Path(self.state_dict_path).resolve()) if self.state_dict_path else None,
            label=self.label or self.build,
            gain=_GAIN.get(self.build, 1.0) if self.gain is None else self.gain,
        )

    def module(self):
        """Builds the network in plain torch.nn (its own initial weights)."""
        if libraries.is_library_name(self.build):
            return libraries.build_network(self.build, **self.kwargs)
        if ":" in self.build:
            return import_name(self.build)(**self.kwargs)
        from .plain import get_plain

        return get_plain(self.build, **self.kwargs)


@dataclass(frozen=True)
class Case:
    """One cell of a benchmark, all that a worker needs: `folder` holds weights, batches and reference."""

    spec: ModelSpec
    batch: int
    mode: str
    dtype: str
    threads: int
    folder: str

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}, but must be one of {', '.join(MODES)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, but must be one of {', '.join(DTYPES)}")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}, but must be at least 1")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}, but must be at least 1")

    @property
    def title(self) -> str:
        return f"{self.spec.label} batch {self.batch} {self.mode} {self.dtype}"

    @property
    def weights_file(self) -> Path:
        return Path(self.folder) / "weights.pt"

    @property
    def batches_file(self) -> Path:
        return Path(self.folder) / f"batches-{self.mode}-{self.batch}.pt"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Case":
        spec = dict(values["spec"])
        spec["input_shape"] = tuple(spec["input_shape"])
        return cls(**{**values, "spec": ModelSpec(**spec)})


def import_name(path: str):
    """The object that "package.module:name" stands for."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
