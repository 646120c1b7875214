"""`python -m cnnfast summary`."""

import argparse
import sys

import cnnfast
from cnnfast.cli import positive
from cnnfast.train import build
from cnnfast.training.settings import image_size, settings_for


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cnnfast summary",
        description="Layers of a network for Fashion-MNIST: shapes, parameters, multiply-adds.",
    )
    parser.add_argument("--model", choices=cnnfast.models.list_models(), required=True)
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--size", type=positive, help="height and width of the images (default: as trained)")
    parser.add_argument("--depth", type=positive, default=1, help="1: top-level layers, 2: their children …")
    arguments = parser.parse_args(argv)
    size = arguments.size or image_size(arguments.model)
    shape = (arguments.batch, 1, size, size)
    table = cnnfast.summary(build(settings_for(arguments.model)), shape, depth=arguments.depth)
    if not sys.stdout.isatty():
        print(table)
        return 0
    from rich.console import Console

    Console().print(table)
    return 0
