"""One pass over a data set: training and evaluation."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

Batches = Iterable[tuple[Tensor, Tensor]]


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    *,
    dtype: str = "float32",
    learning_rate: Callable[[int], float] | None = None,
) -> tuple[float, float]:
    """Train on every batch once, with cross entropy.

    Args:
        dtype: "float32", or "bfloat16" for autocast.
        learning_rate: of step 0, 1, … of this epoch; None leaves the optimiser's own.

    Returns:
        the mean of the batches' losses, and the share of images that were right when they were trained on.
    """
    model.train()
    losses, correct = _Mean(), _Mean()
    for step, (images, labels) in enumerate(batches):
        if learning_rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
        with precision(images.device, dtype):
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.add(loss.detach(), 1)
        correct.add((logits.detach().argmax(1) == labels).sum(), len(labels))
    return losses.value(), correct.value()


def evaluate(model: nn.Module, batches: Batches, *, dtype: str = "float32") -> float:
    """The share of images that the network, in eval mode, puts into the right class."""
    correct = _Mean()
    for images, labels in batches:
        correct.add((predict(model, images, dtype=dtype) == labels).sum(), len(labels))
    return correct.value()


def predict(model: nn.Module, images: Tensor, *, dtype: str = "float32") -> Tensor:
    """The class of each image (int64), by the network in eval mode; its mode afterwards is that before."""
    with evaluating(model), precision(images.device, dtype):
        return model(images).argmax(1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; train mode comes back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def precision(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """Autocast for "bfloat16", nothing for "float32"."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, dtype))


def with_progress(batches: Batches, total: int, description: str) -> Batches:
    """The batches with a progress bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        return batches
    from tqdm import tqdm

    return tqdm(batches, desc=description, total=total, unit="batch", file=sys.stderr, leave=False)


class _Mean:
    """A running mean that does not wait for the device before it is read."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count = 0

    def add(self, value: Tensor, count: int) -> None:
        self._sum = self._sum + value.double()
        self._count += count

    def value(self) -> float:
        return float(self._sum) / self._count if self._count else float("nan")
