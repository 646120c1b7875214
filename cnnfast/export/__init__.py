"""Networks as files that run elsewhere.

formats.py        one writer per format, and what each asks for
onnx_graph.py     a plan as standard ONNX operators
fresh_process.py  the comparison behind every file
versions.py       what is recorded about who wrote a file
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from cnnfast import _ext
from cnnfast.export import fresh_process
from cnnfast.export.errors import ExportError
from cnnfast.export.formats import FORMATS, Job, quiet, with_one_image_more
from cnnfast.files import replacing
from cnnfast.freeze import FrozenNet
from cnnfast.fuse.check import as_tuple
from cnnfast.fuse.shells import evaluating, shell_copy

__all__ = ["FORMATS", "ExportError", "export", "library_path"]


def export(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    format: str = "torchscript",
    example_inputs: Tensor | tuple | None = None,
    dynamic_batch: bool = True,
    verify: bool = True,
) -> Path:
    """Write a network, in evaluation mode, to a file for other processes; returns its path.

    Takes frozen and fused networks and any module that torch.jit.script or torch.export.export takes; the
    model itself stays as it is. The file appears under its name only when it is whole and, with verify,
    when a fresh process has loaded it and found the same results.

    A process that loads a file, ONNX apart, needs the operator library first, whose place `library_path()`
    tells:

        torch.ops.load_library(library_path)                        # C++: link it, or dlopen
        network = torch.jit.load("network.pt")                      # "torchscript"; C++: torch::jit::load
        network = torch.export.load("network.pt2").module()         # "pt2"
        network = torch._inductor.aoti_load_package("network.pt2")  # "aoti"; C++: AOTIModelPackageLoader

    Without it torch says that it does not know cnnfast::…. Files hold plain weights, which are packed where
    they are loaded, so they run on other CPUs too; an AOTInductor package also holds code that was compiled
    for this CPU's instructions. All of them record who wrote them (docs/export.md).
    Files of torch.jit, torch.export and AOTInductor hold code: load those of people you trust. frozen.save /
    cnnfast.load is the checked format.

    Args:
        format: "torchscript": torch.jit.script, or a trace (with a warning) where that does not compile and
            example_inputs are given. "pt2": torch.export.export. "aoti": the same, compiled by AOTInductor
            (needs a C++ compiler). "onnx": standard operators, batch norm folded, float32, the image size of
            the example; a network that is not frozen is frozen first (needs the package onnx).
        path: "pt2" and "aoti" files end with .pt2, "onnx" files with .onnx.
        example_inputs: a tensor or a tuple; needed for all formats but "torchscript", and for verify to
            compare numbers: without it the fresh process only loads the file.
        dynamic_batch: for any number of images; checked with a second batch size. TorchScript always takes
            any.

    Raises:
        ValueError: a format that this version does not write, example_inputs missing, a wrong suffix.
        TypeError: model is no module, or scripted already.
        ExportError: see there; the old file, if any, stays.
    """
    path = Path(path)
    _check_arguments(model, path, format, example_inputs)
    inputs = None if example_inputs is None else as_tuple(example_inputs)
    network = model if isinstance(model, FrozenNet) else evaluating(shell_copy(model))
    with replacing(path) as whole, TemporaryDirectory(dir=path.parent, prefix=".") as folder, quiet():
        file = Path(folder, path.name)  # archives take the name of their file
        written = FORMATS[format].write(Job(network, file, inputs, dynamic_batch))
        if verify:
            batches = [] if inputs is None else [inputs]
            if inputs is not None and dynamic_batch:
                batches.append(with_one_image_more(inputs))
            fresh_process.check(written, file, format, batches)
        file.replace(whole)
    return path


def library_path() -> Path:
    """The operator library, for torch.ops.load_library and for C++. RuntimeError where it is not built."""
    if not _ext.AVAILABLE:
        raise RuntimeError(f"export: there is no operator library: {_ext.REASON}")
    return _ext._LIBRARY


def _check_arguments(model: object, path: Path, format: str, example_inputs: object) -> None:
    if format not in FORMATS:
        known = ", ".join(map(repr, FORMATS))
        raise ValueError(f"export: format is one of {known}, not {format!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"export: model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "export: model is scripted already: torch.jit.save writes it; export the original instead"
        )
    rules = FORMATS[format]
    if rules.needs and example_inputs is None:
        raise ValueError(
            f'export: format="{format}" needs example_inputs ({rules.needs}): export(model, path, '
            f'format="{format}", example_inputs=x)'
        )
    if rules.suffix and path.suffix != rules.suffix:
        raise ValueError(
            f'export: files of format "{format}" end with {rules.suffix}: export(model, '
            f'"{path.with_suffix(rules.suffix)}", ...)'
        )
