"""Training in several processes at once, as torchrun starts them: who is who, and what they share."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cnnfast.training.settings import TrainingError


@dataclass(frozen=True)
class Processes:
    """The processes that train one network together, seen from the one with number `rank`."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """True for the one that writes files and reports."""
        return self.rank == 0

    def part(self, items: Tensor) -> Tensor:
        """Every count-th item, from another start in every process."""
        return items[self.rank :: self.count]

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The network to train with: gradients are averages over the processes."""
        if self.count == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def equalise(self, model: nn.Module) -> None:
        """Give every process the buffers of the first: each has moved its own averages of batch norm."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def mean(self, value: float, weight: float, device: torch.device) -> float:
        """The weighted mean of the processes' values."""
        if self.count == 1:
            return value
        share = value * weight if weight else 0.0  # NaN where this process had nothing to look at
        sums = torch.tensor([share, weight], dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return float(sums[0] / sums[1])

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in every one of them."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


def current() -> Processes:
    """The group that this process has joined; a process alone without one."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return Processes()


@contextmanager
def joined(device: str = "auto") -> Iterator[str]:
    """Be part of the group that torchrun started this process for, if it did.

    Gives the device to train on: under torchrun a GPU of this process's own (nccl) or the CPU (gloo), else
    `device` as it is.

    Raises:
        TrainingError: under torchrun a device with a number, or fewer GPUs than processes.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield device
        return
    local = int(os.environ["LOCAL_RANK"])
    on_gpu = device == "cuda" or device == "auto" and torch.cuda.is_available()
    if ":" in device:
        raise TrainingError(f"device {device!r} has a number: under torchrun every process takes its own")
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise TrainingError(f"{torch.cuda.device_count()} GPUs: start no more processes, or --device cpu")
        torch.cuda.set_device(local)
    # Functions of this module have the group as the default of an argument, which is whatever group there is
    # when the module is imported; DistributedDataParallel imports it. A group held like that outlives
    # destroy_process_group, and so do its threads. One of them may still hold a tensor of the last exchange,
    # and to free it needs the interpreter: where that has ended meanwhile, the whole process is aborted.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield f"cuda:{local}" if on_gpu else device
        dist.barrier()  # nobody leaves while another one still waits for its part
    finally:
        dist.destroy_process_group()
