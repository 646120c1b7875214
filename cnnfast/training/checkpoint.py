"""Checkpoints: everything that the next epoch depends on, in one file that is whole or absent."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnfast.files import replacing
from cnnfast.training.processes import Processes
from cnnfast.training.record import Epoch
from cnnfast.training.settings import Settings, TrainingError

FORMAT = 1

RandomState = dict[str, Any]


def random_state() -> RandomState:
    """What dropout draws from, in this process."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def save(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    shuffle: torch.Generator,
    settings: Settings,
    history: list[Epoch],
    random: Sequence[RandomState],
) -> None:
    """Write the state after the last epoch of `history`; `random` has an entry per process."""
    state = {
        "format": FORMAT,
        "settings": asdict(settings),
        "history": [asdict(epoch) for epoch in history],
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": {
            "shuffle": shuffle.get_state(),
            **random[0],
            "other_processes": list(random[1:]),
        },
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; nothing is unpickled but tensors and plain containers.

    Raises:
        TrainingError: no such file, damaged, or written by a newer version.
    """
    if not path.is_file():
        raise TrainingError(f"{path} does not exist: there is no checkpoint to go on from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["format"]
    except Exception as error:  # torch.load raises half a dozen types for a damaged file
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise TrainingError(f"{path} is damaged or no checkpoint of cnnfast ({reason[0]})") from error
    if found != FORMAT:
        raise TrainingError(f"{path} has format {found}, this cnnfast reads {FORMAT}: update cnnfast")
    return state


def restore(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    shuffle: torch.Generator,
    settings: Settings,
    processes: Processes,
) -> list[Epoch]:
    """Put the state of a checkpoint back; its epochs so far.

    Raises:
        TrainingError: as `load`, or the checkpoint belongs to other settings or another number of processes.
    """
    state = load(path)
    difference = settings.difference(state["settings"])
    if difference:
        raise TrainingError(f"{path} was trained with other settings ({difference}): choose another --out")
    random = [state["random"], *state["random"].get("other_processes", [])]
    if len(random) != processes.count:
        raise TrainingError(f"{path} was trained by {len(random)} processes, not by {processes.count}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    shuffle.set_state(state["random"]["shuffle"])
    _set_random_state(random[processes.rank])
    return [Epoch(**epoch) for epoch in state["history"]]


def _set_random_state(state: RandomState) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
