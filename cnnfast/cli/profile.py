"""`python -m cnnfast profile`."""

import argparse
import sys
from pathlib import Path

import torch

import cnnfast
from cnnfast import _ext
from cnnfast.benchmarking.case import DTYPES, ModelSpec
from cnnfast.benchmarking.fill import fill_weights, images
from cnnfast.cli import CommandError, positive
from cnnfast.cli.dtypes import dtype_name
from cnnfast.limits import torch_threads
from cnnfast.plan.profile import Profile


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cnnfast profile",
        description="Time, arithmetic and memory traffic of every layer of a frozen network with random "
        "weights, beside what this machine does at most.",
    )
    parser.add_argument(
        "--model",
        type=_network,
        required=True,
        help=f"one of {', '.join(cnnfast.models.list_models())}, torchvision:NETWORK, timm:NETWORK",
    )
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--dtype", type=dtype_name, choices=DTYPES, default="float32", help="bf16: bfloat16")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=positive, default=20, help="runs to take medians of (default 20)")
    parser.add_argument("--out", type=Path, help="also draw the roofline, as PNG")
    arguments = parser.parse_args(argv)
    if not _ext.AVAILABLE:
        raise CommandError(f"profile needs the compiled operators, and {_ext.REASON}")
    with torch_threads(arguments.threads):
        profile = _profile(arguments.model, arguments.batch, arguments.dtype, arguments.repeats)
    _print(profile)
    if arguments.out is not None:
        print(f"written: {_draw(profile, arguments.out)}")
    return 0


def _network(name: str) -> ModelSpec:
    try:
        return ModelSpec(name).resolved()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _profile(spec: ModelSpec, batch: int, dtype: str, repeats: int) -> Profile:
    """Of the network and images that benchmarks use."""
    net = spec.module()
    fill_weights(net, spec.gain)
    batch_of_images = images(batch, spec.input_shape, seed=1)
    try:
        frozen = cnnfast.freeze(net.eval(), batch_of_images, dtype=getattr(torch, dtype), strict=True)
    except ValueError as error:  # layers stay eager, of which there is no profile
        raise CommandError(str(error)) from error
    return frozen.profile(batch_of_images, repeats)


def _draw(profile: Profile, path: Path) -> Path:
    try:
        return profile.roofline(path)
    except ImportError as error:
        raise CommandError(str(error)) from error


def _print(profile: Profile) -> None:
    if not sys.stdout.isatty():
        print(profile)
        return
    from rich.console import Console

    Console().print(profile.to_rich())
