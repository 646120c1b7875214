"""Whether fused networks learn as eager ones do: losses of some fused runs beside those of eager runs.

    python bench/loss_band.py residual_net densenet --steps 300

For windows of steps on Fashion-MNIST: the least and greatest mean loss of the eager runs; the mean of the
fused ones, which have other seeds (initial weights and order of images); whether it lies between them; and
the mean of eager runs with the fused ones' seeds, which tells what the seeds bring and what the fused layers.
"""

import argparse
import itertools
from dataclasses import replace

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from cnnfast.data import batches, fashion_mnist
from cnnfast.train import build
from cnnfast.training.settings import DTYPES, Settings, settings_for


def losses(settings: Settings, steps: int, data: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The training loss of every step."""
    model = build(settings).train()
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)
        if settings.optimizer == "sgd"
        else torch.optim.Adam(model.parameters(), lr=settings.lr)
    )
    generator = torch.Generator().manual_seed(settings.seed)
    found = []
    for images, labels in itertools.islice(
        batches(*data, settings.batch_size, shuffle=True, generator=generator, resize=settings.resize), steps
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.dtype == "bfloat16"):
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return torch.tensor(found)


def windows(settings: Settings, fuse: bool, seeds: range, steps: int, window: int, data) -> torch.Tensor:
    """Mean losses, a row per run and a column per window."""
    runs = [losses(replace(settings, fuse=fuse, seed=seed), steps, data) for seed in seeds]
    return torch.stack(runs).unfold(1, window, window).mean(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--window", type=int, default=30)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="bfloat16: under autocast")
    parser.add_argument("--resize", type=int, help="default: the network's own")
    options = parser.parse_args()
    data = fashion_mnist("train")
    for name in options.models:
        changed = {"batch_size": options.batch_size, "dtype": options.dtype} | (
            {"resize": options.resize} if options.resize else {}
        )
        settings = settings_for(name, **changed)
        arguments = (options.steps, options.window, data)
        eager = windows(settings, False, range(options.runs), *arguments)
        others = range(options.runs, 2 * options.runs)
        fused, same = (windows(settings, fuse, others, *arguments).mean(0) for fuse in (True, False))
        low, high = eager.min(0).values, eager.max(0).values
        inside = ["yes" if is_inside else "no" for is_inside in (low <= fused) & (fused <= high)]
        table = Table("steps", "eager: least", "greatest", "fused: mean", "eager: mean", "inside", title=name)
        for i, row in enumerate(torch.stack([low, high, fused, same], 1).tolist()):
            table.add_row(str((i + 1) * options.window), *(f"{x:.4f}" for x in row), inside[i])
        Console().print(table)


if __name__ == "__main__":
    main()
