"""What is kept of a training run: the notes' epoch line, a JSON log, the curves as a picture."""

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from cnnfast.benchmarking.machine import cpu_name
from cnnfast.files import replacing, write_atomically
from cnnfast.training.settings import Settings


@dataclass(frozen=True)
class Epoch:
    """`loss` is the mean of the batches' losses, `seconds` counts training and evaluation.

    `waited` are those seconds in which the network stood still for a batch; they do not count in comparisons.
    """

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    seconds: float
    waited: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}, loss {self.loss:.4f}, train acc {self.train_accuracy:.3f}, "
            f"test acc {self.test_accuracy:.3f}, time {self.seconds:.1f} sec"
        )


def write_log(
    path: Path,
    settings: Settings,
    history: list[Epoch],
    images: dict[str, int],
    device: torch.device,
    processes: int = 1,
) -> None:
    """Settings, epochs, numbers of images of each split, machine and versions as JSON."""
    content = {
        "settings": asdict(settings),
        "epochs": [asdict(epoch) for epoch in history],
        "images": images,
        "device": str(device),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def plot_curves(path: Path, settings: Settings, history: list[Epoch]) -> None:
    """Loss and accuracies over the epochs, as PNG. Needs matplotlib."""
    from matplotlib.figure import Figure  # no pyplot: it would pick a backend for the whole process
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [record.epoch for record in history]
    left.plot(epochs, [record.loss for record in history], marker="o")
    left.set_ylabel("training loss (cross entropy)")
    right.plot(epochs, [record.train_accuracy for record in history], marker="o", label="train")
    right.plot(epochs, [record.test_accuracy for record in history], marker="s", label="test")
    right.set_ylabel("accuracy")
    right.legend()
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, len(history) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"{settings.model} on Fashion-MNIST, "
        f"{settings.optimizer} lr {settings.lr:g}, batch {settings.batch_size}"
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
