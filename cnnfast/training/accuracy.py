"""A page about training runs: accuracies, settings, machine and command of each, from their logs."""

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cnnfast.training.settings import Settings, TrainingError, settings_for

# The notes' own test accuracy after five epochs on a GPU.
PUBLISHED = {"nin": 0.752, "nin_single_1x1": 0.428}

_HEADER = (
    "network",
    "settings",
    "images",
    "epochs",
    "train acc",
    "test acc",
    "best test acc",
    "notes' test acc",
    "sec an epoch",
    "machine",
)
_INTRODUCTION = """\
# Accuracy on Fashion-MNIST

Written by `python -m cnnfast accuracy` from the log of each run. Images are those trained on; test accuracy
counts all 10,000 test images. Training accuracy is counted while the network learns, with dropout and
augmentation where it has them. Seconds are the median of the epochs, evaluation included.
"""


def page(logs: Sequence[Mapping[str, Any]]) -> str:
    """The runs as a Markdown page: a table, then the command of each run.

    Args:
        logs: contents of log.json files.
    """
    lines = [_INTRODUCTION, _row(_HEADER), "|---" * len(_HEADER) + "|", *(_row(_cells(log)) for log in logs)]
    commands = ["", "## Commands", "```", *(command(log) for log in logs), "```"]
    return "\n".join(lines + commands) + "\n"


def read_log(path: Path) -> dict[str, Any]:
    """The content of a run's log, from the file or from the run's folder.

    Raises:
        TrainingError: no such file, or no log.
    """
    path = path / "log.json" if path.is_dir() else path
    try:
        log = json.loads(path.read_text())
        _settings(log)
        if not log["epochs"]:
            raise ValueError("it holds no epoch")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} cannot be read as the log of a training run ({error})") from error
    return log


def command(log: Mapping[str, Any]) -> str:
    """The command that gives the run of a log, without the settings that are the network's own."""
    settings, processes = _settings(log), log.get("processes", 1)
    if settings.schedule == "constant":
        settings = replace(settings, epochs=len(log["epochs"]))
    usual = settings_for(settings.model)
    words = ["torchrun", "--nproc-per-node", str(processes)] if processes > 1 else ["python"]
    words += ["-m", "cnnfast", "train", "--model", settings.model]
    for field in fields(Settings):
        value = getattr(settings, field.name)
        if value != getattr(usual, field.name):
            words += _option(field.name, value)
    return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", f"{value:g}" if isinstance(value, float) else str(value)]


def _cells(log: Mapping[str, Any]) -> list[str]:
    epochs, settings = log["epochs"], _settings(log)
    images = log.get("images", {"train": 60_000})  # the first logs did not say: all
    published = PUBLISHED.get(settings.model)
    return [
        settings.model,
        _described(settings),
        f"{images['train']:,}",
        str(len(epochs)),
        f"{epochs[-1]['train_accuracy']:.3f}",
        f"{epochs[-1]['test_accuracy']:.3f}",
        f"{max(epoch['test_accuracy'] for epoch in epochs):.3f}",
        f"{published:.3f}" if published else "",
        f"{statistics.median(epoch['seconds'] for epoch in epochs):.1f}",
        _machine(log),
    ]


def _described(settings: Settings) -> str:
    momentum = f", momentum {settings.momentum:g}" if settings.optimizer == "sgd" else ""
    words = [f"{settings.optimizer} lr {settings.lr:g}{momentum}", f"batch {settings.batch_size}"]
    words += [f"resize {settings.resize}"] if settings.resize else []
    words += ["flip, crop, colour"] if settings.augment else []
    words += ["lr falling to 0"] if settings.schedule == "linear" else []
    words += [settings.dtype] if settings.dtype != "float32" else []
    words += ["plain torch.nn"] if not settings.fuse else []
    return ", ".join(words)


def _machine(log: Mapping[str, Any]) -> str:
    processes = log.get("processes", 1)
    where = log.get("machine", log["device"])
    each = f"{processes} processes, each " if processes > 1 else ""
    return f"{where}, {each}{log['threads']} threads" if log["device"] == "cpu" else where


def _settings(log: Mapping[str, Any]) -> Settings:
    return Settings(**log["settings"])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
