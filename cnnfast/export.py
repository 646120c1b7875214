"""Networks as files that run elsewhere."""

import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnfast import _ext
from cnnfast.files import replacing
from cnnfast.freeze import FrozenNet
from cnnfast.fuse.check import as_tuple, relative_error
from cnnfast.fuse.shells import shell_copy

__all__ = ["FORMATS", "ExportError", "export", "library_path"]

_TOLERANCE = 1e-5  # of the largest output value: the same operators on the same machine

# Imports torch alone: what a user's process needs is the library and the file, not this package.
_FRESH_PROCESS = """
import sys, torch
format, path, library, inputs, outputs = sys.argv[1:]
batches, threads, times = torch.load(inputs, weights_only=True)
if library:
    torch.ops.load_library(library)
    torch.set_num_threads(threads)  # with the times: a tuned network is to make the same choices here
    torch.ops.cnnfast.add_conv_times(times)
network = torch.jit.load(path) if format == "torchscript" else torch.export.load(path).module()
with torch.no_grad():
    torch.save([network(*args) for args in batches], outputs)
"""


class ExportError(RuntimeError):
    """A network that cannot be written in a format, or a file that gives other results when loaded."""


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

    A process that loads the file needs the operator library first, whose place `library_path()` tells:

        torch.ops.load_library(library_path)          # C++: link it, or dlopen
        network = torch.jit.load("network.pt")        # "torchscript"; C++: torch::jit::load
        network = torch.export.load("network.pt2").module()   # "pt2"

    Without it torch says "Unknown builtin op: cnnfast::…". Files hold plain weights, so they run on other
        CPUs too.
    TorchScript archives and torch.export programs are for files from people you trust; frozen.save /
    cnnfast.load is the checked format.

    Args:
        format: "torchscript": torch.jit.script, or a trace (with a warning) where that does not compile and
            example_inputs are given. "pt2": torch.export.export; the path has to end with .pt2.
        example_inputs: a tensor or a tuple; needed for "pt2", and for verify to compare numbers: without
            it the fresh process only loads the file.
        dynamic_batch: "pt2" for any number of images; checked with a second batch size.

    Raises:
        ValueError: a format that this version does not write, example_inputs missing, a wrong suffix.
        TypeError: model is no module, or scripted already.
        ExportError: see there; the old file, if any, stays.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"export: this version writes {' and '.join(map(repr, FORMATS))}, not {format!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"export: model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "export: model is scripted already: torch.jit.save writes it; export the original instead"
        )
    inputs = None if example_inputs is None else as_tuple(example_inputs)
    network = model if isinstance(model, FrozenNet) else shell_copy(model).eval()
    with replacing(path) as temporary, _quiet():
        FORMATS[format](network, temporary, path, inputs, dynamic_batch)
        if verify:
            batches = [] if inputs is None else [inputs]
            if inputs is not None and dynamic_batch:
                batches.append(_with_one_image_more(inputs))
            _check_in_fresh_process(network, temporary, format, batches)
    return path


def library_path() -> Path:
    """The operator library, for torch.ops.load_library and for C++. RuntimeError where it is not built."""
    if not _ext.AVAILABLE:
        raise RuntimeError(f"export: there is no operator library: {_ext.REASON}")
    return _ext._LIBRARY


def _write_torchscript(
    network: nn.Module, file: Path, path: Path, inputs: tuple | None, dynamic_batch: bool
) -> None:
    try:
        scripted = torch.jit.script(network)
    except Exception as error:  # torch.jit raises whatever it meets in the source
        if inputs is None:
            raise ExportError(
                f"export: torch.jit.script does not compile {type(network).__name__}: "
                f"{_first_line(error)}. With "
                "export(..., example_inputs=x) the file holds a trace"
            ) from error
        warnings.warn(
            f"export: torch.jit.script does not compile {type(network).__name__} "
            f"({_first_line(error)}); the file holds "
            "a trace, which is right for inputs that take the example's path through the network",
            RuntimeWarning,
            stacklevel=4,
        )
        with torch.no_grad():
            scripted = torch.jit.trace(network, inputs, check_trace=False)
    torch.jit.save(scripted.eval(), str(file))


def _write_pt2(network: nn.Module, file: Path, path: Path, inputs: tuple | None, dynamic_batch: bool) -> None:
    if inputs is None:
        raise ValueError(
            'export: format="pt2" needs example_inputs: export(model, path, format="pt2", example_inputs=x)'
        )
    if path.suffix != ".pt2":
        raise ValueError(
            f'export: torch.export writes .pt2 files: export(model, "{path.with_suffix(".pt2")}", ...)'
        )
    shapes = None
    if dynamic_batch:
        batch = torch.export.Dim("batch")
        shapes = tuple({0: batch} if isinstance(value, Tensor) else None for value in inputs)
        inputs = _with_one_image_more(inputs)  # torch.export takes a batch of one for a constant
    with torch.no_grad():
        program = torch.export.export(network, inputs, dynamic_shapes=shapes)
    torch.export.save(program, str(file))


FORMATS: dict[str, Callable[..., None]] = {"torchscript": _write_torchscript, "pt2": _write_pt2}


def _with_one_image_more(inputs: tuple) -> tuple:
    return tuple(torch.cat([value, value[:1]]) if isinstance(value, Tensor) else value for value in inputs)


def _check_in_fresh_process(network: nn.Module, file: Path, format: str, batches: list[tuple]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "inputs"), Path(folder, "outputs")
        times = torch.ops.cnnfast.conv_times() if _ext.AVAILABLE else None
        torch.save((batches, torch.get_num_threads(), times), inputs)
        library = str(library_path()) if _ext.AVAILABLE else ""
        command = [sys.executable, "-W", "ignore", "-c", _FRESH_PROCESS, format, str(file), library]
        result = subprocess.run(
            [*command, str(inputs), str(outputs)], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise ExportError(
                f"export: a fresh process cannot run the file:\n{result.stderr.strip()[-2000:]}"
            )
        got = torch.load(outputs, weights_only=True)
    with torch.no_grad():
        wanted = [network(*batch) for batch in batches]
    for a, b in zip(_tensors(got), _tensors(wanted), strict=True):
        if not (error := relative_error(a, b)) <= _TOLERANCE:
            raise ExportError(f"export: the file gives other results in a fresh process (error {error:.1e})")


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [tensor for part in values for tensor in _tensors(part)]


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.jit calls itself deprecated; this is the format that was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated.*")
        yield


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
