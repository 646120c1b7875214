"""Training on Fashion-MNIST as the course notes do it, with checkpoints that resume to the bit.

settings = settings_for("residual_net", epochs=3)
history = train(build(settings), fashion_mnist("train"), fashion_mnist("test"), settings, out="runs/mine")
"""

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnfast import models
from cnnfast.benchmarking.plain import get_plain
from cnnfast.data import batches
from cnnfast.training import checkpoint
from cnnfast.training.epoch import evaluate, predict, train_epoch, with_progress
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
    report: Callable[[Epoch], None] = print,
) -> list[Epoch]:
    """Train `model` in place, evaluate it after every epoch and keep checkpoints.

    On the CPU of one machine with one number of threads, a run that was cut off and resumed gives the curve
    and the weights of a run in one go, bit for bit. torch's global random generator is set from the seed.

    Args:
        train_data, test_data: images (uint8, N×H×W) and labels (int64, N), as `fashion_mnist` gives them.
        out: a folder for checkpoint.pt, log.json and curves.png, written after every epoch.
        resume: go on from `out`'s checkpoint, up to `settings.epochs` in all.
        report: gets each epoch's record; printing one gives the notes' line.

    Returns:
        the records of all epochs, those before a resumption included.

    Raises:
        TrainingError: no checkpoint to resume from, or one of other settings; a loss that is not finite.
    """
    device = choose_device(device) if isinstance(device, str) else device
    folder = Path(out) if out is not None else None
    model.to(device)
    optimizer = _optimizer(model, settings)
    torch.manual_seed(settings.seed)
    shuffle = torch.Generator().manual_seed(settings.seed)
    history: list[Epoch] = []
    if resume:
        if folder is None:
            raise TrainingError("resume needs `out`, the folder of the run to go on with")
        history = checkpoint.restore(
            folder / CHECKPOINT, model=model, optimizer=optimizer, shuffle=shuffle, settings=settings
        )
    while len(history) < settings.epochs:
        history.append(
            _one_epoch(model, optimizer, train_data, test_data, settings, device, shuffle, len(history) + 1)
        )
        if folder is not None:
            checkpoint.save(
                folder / CHECKPOINT,
                model=model,
                optimizer=optimizer,
                shuffle=shuffle,
                settings=settings,
                history=history,
            )
            _keep_record(folder, settings, history, device)
        report(history[-1])
    return history


def _one_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_data: Split,
    test_data: Split,
    settings: Settings,
    device: torch.device,
    shuffle: torch.Generator,
    number: int,
) -> Epoch:
    start = time.perf_counter()
    shuffled = batches(
        *train_data,
        settings.batch_size,
        shuffle=True,
        generator=shuffle,
        resize=settings.resize,
        device=device,
    )
    steps = math.ceil(len(train_data[0]) / settings.batch_size)
    shown = with_progress(shuffled, steps, f"epoch {number}/{settings.epochs}")
    loss, train_accuracy = train_epoch(
        model, optimizer, shown, dtype=settings.dtype, learning_rate=_learning_rate(settings, number, steps)
    )
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} in epoch {number}: try a smaller learning rate than {settings.lr:g}"
        )
    test = batches(*test_data, EVALUATION_BATCH, resize=settings.resize, device=device)
    test_accuracy = evaluate(model, test, dtype=settings.dtype)
    return Epoch(number, loss, train_accuracy, test_accuracy, time.perf_counter() - start)


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


def _keep_record(folder: Path, settings: Settings, history: list[Epoch], device: torch.device) -> None:
    write_log(folder / "log.json", settings, history, device)
    try:
        plot_curves(folder / "curves.png", settings, history)
    except ImportError as error:
        if len(history) == 1:
            print(f"no curves.png: {error} (pip install 'cnnfast[train]')", file=sys.stderr)
