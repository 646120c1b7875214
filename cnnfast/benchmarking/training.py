"""Contenders of a training step: forward, cross entropy, backward, SGD.

In bfloat16 the parameters stay float32 and every contender's forward runs under autocast.
"""

import contextlib
import platform
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cnnfast.training.allocator import keep_freed_memory
from cnnfast.training.epoch import precision

from .case import Case
from .contenders import extension_unavailable

# Small, so that hundreds of steps on the same batches neither diverge nor reach a loss of exactly zero.
LEARNING_RATE = 1e-3


class TrainingContender(ABC):
    """One way to run a training step. Built inside a worker from a train-mode float32 network."""

    name: ClassVar[str]
    setting: ClassVar[str]
    mode: ClassVar[str] = "training"
    default: ClassVar[bool] = True
    memory_format: ClassVar[torch.memory_format] = torch.channels_last

    def __init__(self, case: Case, model: nn.Module, example: Tensor):
        self.dtype = case.dtype
        model = model.to(memory_format=self.memory_format)
        self.network = self.prepare(model)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    @classmethod
    def unavailable(cls) -> str | None:
        return None

    @abstractmethod
    def prepare(self, model: nn.Module) -> Any:
        """The callable that computes class scores with the parameters of `model`."""

    def context(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def feed(self, batch: Tensor, target: Tensor) -> Any:
        return batch.contiguous(memory_format=self.memory_format), target

    def backward(self, fed: Any) -> Tensor:
        """Loss and gradients, without a change of the weights."""
        inputs, target = fed
        self.optimizer.zero_grad(set_to_none=True)
        with precision(inputs.device, self.dtype):
            loss = nn.functional.cross_entropy(self.network(inputs), target)
        loss.backward()
        return loss.detach()

    def step(self, fed: Any) -> Tensor:
        """The timed call."""
        loss = self.backward(fed)
        self.optimizer.step()
        return loss


class EagerTraining(TrainingContender):
    name = "eager"
    setting = "torch.nn modules, NCHW, SGD"
    memory_format = torch.contiguous_format

    def prepare(self, model: nn.Module) -> Any:
        return model


class EagerChannelsLastTraining(TrainingContender):
    name = "eager_channels_last"
    setting = "torch.nn modules, model and input channels_last, SGD"

    def prepare(self, model: nn.Module) -> Any:
        return model


class CompiledTraining(TrainingContender):
    name = "compile"
    setting = "torch.compile(model), channels_last, SGD"

    def prepare(self, model: nn.Module) -> Any:
        return torch.compile(model, dynamic=False)


class FusedTraining(TrainingContender):
    name = "cnnfast_fused"
    setting = "cnnfast.fuse(model).train(), channels_last, SGD"

    @classmethod
    def unavailable(cls) -> str | None:
        return extension_unavailable()

    def prepare(self, model: nn.Module) -> Any:
        import cnnfast

        return cnnfast.fuse(model).train()


class _FreedMemoryKept:
    """The process keeps the memory that it frees: pages cleared anew are a third of a large step, for all."""

    def __init__(self, *arguments: Any):
        if not keep_freed_memory():
            raise RuntimeError("the C library did not take the setting that keeps freed memory")
        super().__init__(*arguments)

    @classmethod
    def unavailable(cls) -> str | None:
        if platform.libc_ver()[0] != "glibc":
            return "freed memory is kept by a setting of glibc, which is not this system's C library"
        return super().unavailable()


class EagerKept(_FreedMemoryKept, EagerTraining):
    name = "eager_kept"
    setting = f"{EagerTraining.setting}; freed memory kept"


class EagerChannelsLastKept(_FreedMemoryKept, EagerChannelsLastTraining):
    name = "eager_channels_last_kept"
    setting = f"{EagerChannelsLastTraining.setting}; freed memory kept"


class CompiledKept(_FreedMemoryKept, CompiledTraining):
    name = "compile_kept"
    setting = f"{CompiledTraining.setting}; freed memory kept"


class FusedKept(_FreedMemoryKept, FusedTraining):
    name = "cnnfast_fused_kept"
    setting = f"{FusedTraining.setting}; freed memory kept, as python -m cnnfast train does"


TRAINING = (
    EagerTraining,
    EagerChannelsLastTraining,
    CompiledTraining,
    FusedTraining,
    EagerKept,
    EagerChannelsLastKept,
    CompiledKept,
    FusedKept,
)
