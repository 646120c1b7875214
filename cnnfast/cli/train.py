"""`python -m cnnfast train`."""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path

from cnnfast import models
from cnnfast.cli.dtypes import dtype_name
from cnnfast.training.settings import DTYPES, OPTIMIZERS, SCHEDULES, Settings, TrainingError, settings_for


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    settings, out = _settings(arguments)
    if (out / "checkpoint.pt").exists() and not (arguments.resume or arguments.overwrite):
        raise TrainingError(f"{out} holds a checkpoint: --resume goes on with it, --overwrite starts again")

    from cnnfast.training.allocator import keep_freed_memory
    from cnnfast.training.processes import joined

    keep_freed_memory()
    with joined(arguments.device) as device:
        return _train(settings, device, out, arguments)


def _train(settings: Settings, device: str, out: Path, arguments: argparse.Namespace) -> int:
    from cnnfast.data import fashion_mnist
    from cnnfast.train import build, train
    from cnnfast.training.processes import current

    train_data, test_data = fashion_mnist("train"), fashion_mnist("test")
    try:
        train(
            build(settings),
            train_data,
            test_data,
            settings,
            device=device,
            out=out,
            resume=arguments.resume,
            limit_minutes=arguments.limit_minutes,
            report=lambda epoch: print(epoch, flush=True),
        )
    except KeyboardInterrupt:
        kept = f"{out} holds the last complete epoch, --resume goes on"
        complete = (out / "checkpoint.pt").exists()
        print(f"interrupted: {kept if complete else 'no epoch was complete'}", file=sys.stderr)
        return 130
    if current().first:
        print(f"{out}: checkpoint.pt, log.json, curves.png")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cnnfast train",
        description="Trains a network on Fashion-MNIST. Settings left out are the notes' for that network.",
        epilog="Several processes, each with a part of every batch: "
        "torchrun --nproc-per-node 2 -m cnnfast train ...",
    )
    parser.add_argument("--model", choices=models.list_models(), help="needed unless --resume")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--optimizer", choices=OPTIMIZERS)
    parser.add_argument("--lr", type=float, help="learning rate")
    parser.add_argument("--momentum", type=float, help="for SGD")
    parser.add_argument("--schedule", choices=SCHEDULES, help="linear: the learning rate falls to zero")
    parser.add_argument("--resize", type=int, help="height and width of the images the network gets")
    parser.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, help="random flips, crops and colours"
    )
    parser.add_argument("--train-images", type=int, metavar="N", help="train on N images, drawn by --seed")
    parser.add_argument(
        "--dtype", type=dtype_name, choices=DTYPES, help="bfloat16 (or bf16): autocast (default float32)"
    )
    parser.add_argument("--seed", type=int, help="of weights, order, dropout, … (default 0)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, … (default: GPU where there is one)"
    )
    parser.add_argument(
        "--limit-minutes", type=float, metavar="M", help="begin no further epoch after M minutes"
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/<model>)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument(
        "--overwrite", action="store_true", help="start again, even if --out has a checkpoint"
    )
    parser.add_argument("--no-fuse", action="store_true", help="train its twin in plain torch.nn, to compare")
    return parser


def _settings(arguments: argparse.Namespace) -> tuple[Settings, Path]:
    if arguments.model is None and not (arguments.resume and arguments.out):
        raise TrainingError("--model is missing (only --resume with --out takes it from the checkpoint)")
    out = arguments.out or Path("runs") / arguments.model
    names = {field.name for field in fields(Settings)}
    given = vars(arguments).items()
    changes = {name: value for name, value in given if name in names and value is not None}
    if arguments.no_fuse:
        changes["fuse"] = False
    if not arguments.resume:
        return settings_for(**changes), out

    from cnnfast.training.checkpoint import load

    return replace(Settings(**load(out / "checkpoint.pt")["settings"]), **changes), out
