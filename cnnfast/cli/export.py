"""`python -m cnnfast export`."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cnnfast
from cnnfast import _ext
from cnnfast.cli import CommandError
from cnnfast.data import batches, fashion_mnist
from cnnfast.export import FORMATS
from cnnfast.train import build
from cnnfast.training import checkpoint
from cnnfast.training.settings import Settings, TrainingError, image_size, settings_for

SUFFIXES = {"torchscript": ".pt", "pt2": ".pt2", "aoti": ".aoti.pt2", "onnx": ".onnx"}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cnnfast export",
        description="Freezes a trained network and writes it to a file that loads without its Python code.",
    )
    parser.add_argument("weights", type=Path, help="checkpoint.pt of a training run, or a state_dict")
    parser.add_argument(
        "--out", type=Path, help="file to write (default: the network's name, beside the weights)"
    )
    parser.add_argument("--format", choices=FORMATS, default="torchscript")
    parser.add_argument("--model", choices=cnnfast.models.list_models(), help="needed for a state_dict")
    parser.add_argument("--fused", action="store_true", help="do not freeze: a network that still can train")
    arguments = parser.parse_args(argv)
    if not _ext.AVAILABLE:
        raise CommandError(f"export needs the compiled operators, and {_ext.REASON}")
    net, settings = load(arguments.weights, arguments.model)
    size = settings.resize or image_size(settings.model)
    images, labels = fashion_mnist("test")
    example, _ = next(batches(images, labels, 2, resize=size))
    exported = cnnfast.fuse(net) if arguments.fused else cnnfast.freeze(net, example)
    name = f"{settings.model}{SUFFIXES[arguments.format]}"
    out = arguments.out or arguments.weights.with_name(name)
    try:
        path = cnnfast.export(exported, out, format=arguments.format, example_inputs=example)
    except ValueError as error:  # a file name that the format does not allow
        raise CommandError(str(error)) from error
    print(f"{path}: {settings.model}, {arguments.format}, {'fused' if arguments.fused else 'frozen'}")
    return 0


def load(path: Path, model: str | None = None) -> tuple[nn.Module, Settings]:
    """The trained network in eval mode, and its settings.

    Args:
        path: a checkpoint of `cnnfast.train`, or a state_dict with our keys or those of the notes' code.
        model: the network's name, where the file does not tell it.

    Raises:
        TrainingError: a file that is neither, or does not fit the network.
    """
    state = _read(path)
    if "settings" in state:
        settings = Settings(**checkpoint.load(path)["settings"])
        weights = state["model"]
        if model not in (None, settings.model):
            raise TrainingError(f"{path} holds {settings.model}, not {model}")
    else:
        if model is None:
            raise TrainingError(f"{path} is a state_dict: --model must name its network")
        settings, weights = settings_for(model), state
    net = build(settings)
    try:
        if weights.keys() == net.state_dict().keys():
            net.load_state_dict(weights)
        else:
            cnnfast.models.load_plain_state_dict(net, weights)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"{path} does not fit {settings.model}: {error}") from error
    return net.eval(), settings


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise TrainingError(f"{path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a damaged file
        raise TrainingError(f"{path} is damaged, or holds more than plain tensors ({error})") from error
    if not isinstance(state, dict):
        raise TrainingError(f"{path} holds no state_dict, but {type(state).__name__}")
    return state
