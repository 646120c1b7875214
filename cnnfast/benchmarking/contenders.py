"""What runs a network in a benchmark, each at its best documented setting; one process builds one."""

import contextlib
import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .case import Case, import_name

_PEERS_EXTRA = "pip install 'cnnfast[peers]'"


class Contender(ABC):
    """One way to run inference, built inside a worker from an eval-mode network and an example batch."""

    name: ClassVar[str]
    setting: ClassVar[str]  # how it is set up, one line for the report
    mode: ClassVar[str] = "inference"
    requires: ClassVar[tuple[str, ...]] = ()  # modules beyond torch
    default: ClassVar[bool] = True  # part of a benchmark when nobody names contenders

    step: Callable[[Any], Any]  # the timed call; __init__ sets it, so that no frame of ours is timed with it

    @abstractmethod
    def __init__(self, case: Case, model: nn.Module, example: Tensor): ...

    @classmethod
    def unavailable(cls) -> str | None:
        """Why this contender cannot run here, in words, or None."""
        missing = [module for module in cls.requires if importlib.util.find_spec(module) is None]
        return f"{', '.join(missing)} not installed: {_PEERS_EXTRA}" if missing else None

    def context(self) -> contextlib.AbstractContextManager:
        """Held around all calls."""
        return torch.inference_mode()

    def feed(self, batch: Tensor) -> Any:
        """The batch in the form that this contender likes best; not timed."""
        return batch

    def output(self, result: Any) -> Tensor:
        """What step gave, as a tensor for the parity check; not timed."""
        return result


class _TorchContender(Contender):
    memory_format: ClassVar[torch.memory_format] = torch.channels_last
    model_dtype: ClassVar[torch.dtype | None] = None  # of the parameters, where it is not the case's

    def __init__(self, case: Case, model: nn.Module, example: Tensor):
        self.dtype = getattr(torch, case.dtype)
        model = model.to(memory_format=self.memory_format, dtype=self.model_dtype or self.dtype)
        # Outside inference_mode: tensors made inside it have no version to notice a change by.
        with torch.no_grad():
            self.step = self.network(model, self.feed(example))

    @abstractmethod
    def network(self, model: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        """The callable to time."""

    def feed(self, batch: Tensor) -> Tensor:
        return batch.to(self.dtype).contiguous(memory_format=self.memory_format)


class Eager(_TorchContender):
    name = "eager"
    setting = "torch.nn modules, NCHW, torch.inference_mode"
    memory_format = torch.contiguous_format

    def network(self, model: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        return model


class EagerChannelsLast(_TorchContender):
    name = "eager_channels_last"
    setting = "torch.nn modules, model and input channels_last, torch.inference_mode"

    def network(self, model: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        return model


class JitOptimized(_TorchContender):
    name = "jit_optimize_for_inference"
    setting = "torch.jit.trace, freeze, optimize_for_inference; channels_last"

    def network(self, model: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit announces its own end at every call
            traced = torch.jit.trace(model, example)
            return torch.jit.optimize_for_inference(torch.jit.freeze(traced))


class Compiled(_TorchContender):
    name = "compile"
    setting = "torch.compile with freezing, channels_last, torch.no_grad"
    options: ClassVar[dict[str, Any]] = {}

    def context(self) -> contextlib.AbstractContextManager:
        return torch.no_grad()

    def network(self, model: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        import torch._inductor.config as inductor

        inductor.freezing = True
        compiled = torch.compile(model, dynamic=False, **self.options)
        compiled(example)
        return compiled


class CompiledMaxAutotune(Compiled):
    name = "compile_max_autotune"
    setting = 'torch.compile(mode="max-autotune") with freezing, channels_last, torch.no_grad'
    options = {"mode": "max-autotune"}
    default = False


def extension_unavailable() -> str | None:
    """Why cnnfast cannot be timed here: without its library it would run its eager reference."""
    from cnnfast import _ext

    return None if _ext.AVAILABLE else "cnnfast's compiled operators are not loaded: python -m cnnfast doctor"


class Fused(_TorchContender):
    name = "cnnfast_fused"
    setting = "cnnfast.fuse(model).eval(), channels_last, torch.inference_mode"

    @classmethod
    def unavailable(cls) -> str | None:
        return extension_unavailable()

    def network(self, model: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        import cnnfast

        return cnnfast.fuse(model).eval()


class Frozen(_TorchContender):
    name = "cnnfast_frozen"
    setting = "cnnfast.freeze(model, example, dtype=...), channels_last, torch.inference_mode"
    model_dtype = torch.float32

    @classmethod
    def unavailable(cls) -> str | None:
        return extension_unavailable()

    def network(self, model: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        import cnnfast

        return cnnfast.freeze(model, example.float(), dtype=self.dtype)


def registry(mode: str) -> dict[str, type]:
    """Contenders of a mode by name, in the order of the report."""
    from .peers import OnnxRuntime, OpenVino
    from .training import TRAINING

    if mode == "training":
        return {contender.name: contender for contender in TRAINING}
    inference = (
        Eager,
        EagerChannelsLast,
        JitOptimized,
        Compiled,
        CompiledMaxAutotune,
        OpenVino,
        OnnxRuntime,
        Fused,
        Frozen,
    )
    return {contender.name: contender for contender in inference}


def find(name: str, mode: str) -> type:
    """A contender by name, or by "package.module:Class" for one of your own."""
    if ":" in name:
        return import_name(name)
    known = registry(mode)
    if name not in known:
        raise ValueError(f"no contender named {name!r} for {mode}; known: {', '.join(known)}")
    return known[name]
