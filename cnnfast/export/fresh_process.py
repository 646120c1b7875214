"""A file is looked at where it will be used: in a process that has torch, the library and the file."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnfast import _ext
from cnnfast.export.errors import ExportError
from cnnfast.fuse.check import relative_error

_TOLERANCE = 1e-5  # of the largest output value: the same arithmetic on the same machine

# Imports torch alone: what a user's process needs is the library and the file, not this package.
_FRESH_PROCESS = """
import sys, torch
format, path, library, inputs, outputs = sys.argv[1:]
batches, threads, times = torch.load(inputs, weights_only=True)
torch.set_num_threads(threads)
if library and format != "onnx":
    torch.ops.load_library(library)
    torch.ops.cnnfast.add_conv_times(times)  # a tuned network is to make the same choices here

def onnx_network(path):
    try:
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
    except ImportError:
        from onnx.reference import ReferenceEvaluator
        session = ReferenceEvaluator(path)
        name = session.input_names[0]
    return lambda x: torch.from_numpy(session.run(None, {name: x.contiguous().numpy()})[0])

load = {
    "torchscript": torch.jit.load,
    "pt2": lambda path: torch.export.load(path).module(),
    "aoti": lambda path: torch._inductor.aoti_load_package(path),
    "onnx": onnx_network,
}
network = load[format](path)
with torch.no_grad():
    torch.save([network(*args) for args in batches], outputs)
"""


def check(network: nn.Module, file: Path, format: str, batches: list[tuple]) -> None:
    """Load the file and run the batches; ExportError where that fails or differs from `network`."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "inputs"), Path(folder, "outputs")
        times = torch.ops.cnnfast.conv_times() if _ext.AVAILABLE else None
        torch.save((batches, torch.get_num_threads(), times), inputs)
        library = str(_ext._LIBRARY) if _ext.AVAILABLE else ""
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
