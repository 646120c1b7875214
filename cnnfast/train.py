"""Training on Fashion-MNIST as the course notes do it, with checkpoints that resume to the bit.

In one process, or in several that torchrun has started and `training.processes.joined` has brought together.

settings = settings_for("residual_net", epochs=3)
history = train(build(settings), fashion_mnist("train"), fashion_mnist("test"), settings, out="runs/mine")
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnfast import models
from cnnfast.benchmarking.plain import get_plain
from cnnfast.data import batches
from cnnfast.training import checkpoint
from cnnfast.training.augment import FlipCropColour
from cnnfast.training.epoch import Batches, evaluate, predict, train_epoch, with_progress
from cnnfast.training.prefetch import Batch, Prefetched
from cnnfast.training.processes import current
from cnnfast.training.record import Epoch, plot_curves, write_log
from cnnfast.training.settings import MODEL_ARGUMENTS, Settings, TrainingError, settings_for

__all__ = [
    "Epoch",
    "Settings",
    "TrainingError",
    "build",
    "choose_device",
    "evaluate",
    "predict",
    "settings_for",
    "subset",
    "train",
]

CHECKPOINT = "checkpoint.pt"
EVALUATION_BATCH = 256

Split = tuple[Tensor, Tensor]


def build(settings: Settings) -> nn.Module:
    """The network that `settings` name, for one grey channel and ten classes, initialised from their seed."""
    torch.manual_seed(settings.seed)
    get = models.get_model if settings.fuse else get_plain
    return get(settings.model, **MODEL_ARGUMENTS.get(settings.model, {}))


def choose_device(name: str = "auto") -> torch.device:
    """ "auto" is the GPU where there is one, else the CPU.

    Raises:
        TrainingError: a device that this torch or this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def train(
    model: nn.Module,
    train_data: Split,
    test_data: Split,
    settings: Settings,
    *,
    device: str | torch.device = "auto",
    out: str | os.PathLike | None = None,
    resume: bool = False,
    limit_minutes: float | None = None,
    report: Callable[[Epoch], None] = print,
) -> list[Epoch]:
    """Train `model` in place, evaluate it after every epoch and keep checkpoints.

    On the CPU of one machine with one number of threads, a run that was cut off and resumed gives the curve
    and the weights of a run in one go, bit for bit. torch's global random generator is set from the seed.

    In a group of processes (torch.distributed) every one calls this with the same arguments. They share each
    batch of `settings.batch_size` images equally and end with equal weights; the first alone writes and
    reports. Without batch norm and dropout the weights are those of one process, up to rounding.

    Args:
        train_data, test_data: images (uint8, N×H×W) and labels (int64, N), as `fashion_mnist` gives them.
        out: a folder for checkpoint.pt, log.json and curves.png, written after every epoch.
        resume: go on from `out`'s checkpoint, up to `settings.epochs` in all.
        limit_minutes: begin no further epoch once this call has trained for as long.
        report: gets each epoch's record; printing one gives the notes' line.

    Returns:
        the records of all epochs, those before a resumption included.

    Raises:
        TrainingError: no checkpoint to resume from, or one of other settings; a loss that is not finite; more
            training images asked for than there are; a batch that the processes cannot share equally.
    """
    device = choose_device(device) if isinstance(device, str) else device
    run = _Run(model, train_data, test_data, settings, device)
    folder = Path(out) if out is not None else None
    history: list[Epoch] = []
    if resume:
        if folder is None:
            raise TrainingError("resume needs `out`, the folder of the run to go on with")
        history = run.restore(folder)
    before = len(history)
    while len(history) < settings.epochs:
        history.append(run.epoch(len(history) + 1))
        if folder is not None:
            run.save(folder, history)
        if run.processes.first:
            report(history[-1])
        if limit_minutes is not None and sum(e.seconds for e in history[before:]) >= 60 * limit_minutes:
            break
    return history


class _Run:
    """What the epochs of one call of `train` share."""

    def __init__(
        self, model: nn.Module, train_data: Split, test_data: Split, settings: Settings, device: torch.device
    ):
        self.processes = current()
        if settings.batch_size % self.processes.count:
            raise TrainingError(
                f"batch_size is {settings.batch_size}: no multiple of {self.processes.count} processes"
            )
        self.model = model.to(device)
        self.settings = settings
        self.device = device
        self.train_data = subset(train_data, settings)
        self.test_data = test_data
        self.optimizer = _optimizer(model, settings)
        self.network = self.processes.parallel(model, device)
        self.shuffle = torch.Generator().manual_seed(settings.seed)
        torch.manual_seed(settings.seed + self.processes.rank)  # dropout: its own in every process

    def restore(self, folder: Path) -> list[Epoch]:
        """Put back what `save` wrote; the epochs so far."""
        return checkpoint.restore(
            folder / CHECKPOINT,
            model=self.model,
            optimizer=self.optimizer,
            shuffle=self.shuffle,
            settings=self.settings,
            processes=self.processes,
        )

    def epoch(self, number: int) -> Epoch:
        """Train on every image once, then evaluate."""
        start = time.perf_counter()
        training = Prefetched(self._training_batches())
        loss, train_accuracy = self._train(training, number)
        own = tuple(map(self.processes.part, self.test_data))
        test = Prefetched(batches(*own, EVALUATION_BATCH, resize=self.settings.resize, device=self.device))
        accuracy = evaluate(self.model, test, dtype=self.settings.dtype)
        return Epoch(
            number,
            loss,
            train_accuracy,
            self._mean(accuracy, len(own[0])),
            seconds=self._mean(time.perf_counter() - start),
            waited=self._mean(training.waited + test.waited),
        )

    def _training_batches(self) -> Iterator[Batch]:
        rank, count = self.processes.rank, self.processes.count
        return batches(
            *self.train_data,
            self.settings.batch_size,
            shuffle=True,
            generator=self.shuffle,
            resize=self.settings.resize,
            augment=FlipCropColour(rank, count) if self.settings.augment else None,
            device=self.device,
            part=(rank, count),
        )

    def _train(self, training: Batches, number: int) -> tuple[float, float]:
        settings = self.settings
        steps = math.ceil(len(self.train_data[0]) / settings.batch_size)
        if self.processes.first:
            training = with_progress(training, steps, f"epoch {number}/{settings.epochs}")
        rate = _learning_rate(settings, number, steps)
        found = train_epoch(self.network, self.optimizer, training, dtype=settings.dtype, learning_rate=rate)
        loss, accuracy = map(self._mean, found)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} in epoch {number}: try a smaller learning rate than {settings.lr:g}"
            )
        self.processes.equalise(self.model)
        return loss, accuracy

    def _mean(self, value: float, weight: float = 1.0) -> float:
        return self.processes.mean(value, weight, self.device)

    def save(self, folder: Path, history: list[Epoch]) -> None:
        """Checkpoint, log and curves after the last epoch of `history`."""
        random = self.processes.gather(checkpoint.random_state())
        if not self.processes.first:
            return
        checkpoint.save(
            folder / CHECKPOINT,
            model=self.model,
            optimizer=self.optimizer,
            shuffle=self.shuffle,
            settings=self.settings,
            history=history,
            random=random,
        )
        images = {"train": len(self.train_data[0]), "test": len(self.test_data[0])}
        write_log(folder / "log.json", self.settings, history, images, self.device, self.processes.count)
        try:
            plot_curves(folder / "curves.png", self.settings, history)
        except ImportError as error:
            if len(history) == 1:
                print(f"no curves.png: {error} (pip install 'cnnfast[train]')", file=sys.stderr)


def subset(data: Split, settings: Settings) -> Split:
    """`settings.train_images` images and their labels, the same ones for the same seed; None: all."""
    wanted, images = settings.train_images, len(data[0])
    if wanted is None:
        return data
    if wanted > images:
        raise TrainingError(f"train_images is {wanted}, there are {images}")
    chosen = torch.randperm(images, generator=torch.Generator().manual_seed(settings.seed))[:wanted]
    return data[0][chosen], data[1][chosen]


def _learning_rate(settings: Settings, number: int, steps: int) -> Callable[[int], float] | None:
    """For each step of epoch `number`; None where it is constant."""
    if settings.schedule == "constant":
        return None
    before, total = (number - 1) * steps, settings.epochs * steps
    return lambda step: settings.lr * (1 - (before + step) / total)


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)
    return torch.optim.Adam(model.parameters(), lr=settings.lr)
