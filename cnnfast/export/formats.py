"""One function per format: it writes a file, and the table says what a format asks for."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnfast.export.errors import ExportError
from cnnfast.export.versions import RECORD, record
from cnnfast.freeze import FrozenNet, UnsupportedNetworkError, freeze
from cnnfast.plan.codec import decode, encode
from cnnfast.plan.network import EagerNet, JoinedNet
from cnnfast.plan.nodes import DIRECT

_PROTOBUF_LIMIT = 2**31 - 2**20  # bytes of one ONNX file, with a little left for the graph


@dataclass(frozen=True)
class Job:
    """What is to be written: a network in evaluation mode, to `file`."""

    network: nn.Module
    file: Path
    inputs: tuple | None
    dynamic_batch: bool


@dataclass(frozen=True)
class Format:
    """How a format is written.

    write: gives the network whose results the file has, for the comparison. suffix: that a file name must
    end with, or None. needs: why it needs example_inputs; empty where it does not.
    """

    write: Callable[[Job], nn.Module]
    suffix: str | None = None
    needs: str = ""


def write_torchscript(job: Job) -> nn.Module:
    network = job.network
    try:
        scripted = torch.jit.script(network)
    except Exception as error:  # torch.jit raises whatever it meets in the source
        name, reason = type(network).__name__, first_line(error)
        if job.inputs is None:
            raise ExportError(
                f"export: torch.jit.script does not compile {name}: {reason}. With "
                "export(..., example_inputs=x) the file holds a trace"
            ) from error
        warnings.warn(
            f"export: torch.jit.script does not compile {name} ({reason}); the file holds a trace, which is "
            "right for inputs that take the example's path through the network",
            RuntimeWarning,
            stacklevel=4,
        )
        with torch.no_grad():
            scripted = torch.jit.trace(network, job.inputs, check_trace=False)
    torch.jit.save(scripted.eval(), str(job.file), _extra_files={RECORD: json.dumps(record(network))})
    return network


def write_pt2(job: Job) -> nn.Module:
    torch.export.save(_program(job), str(job.file), extra_files={RECORD: json.dumps(record(job.network))})
    return job.network


def write_aoti(job: Job) -> nn.Module:
    from torch._inductor import aoti_compile_and_package, config

    compiler = config.cpp.cxx[1] or config.cpp.cxx[0]
    if not compiler or not shutil.which(compiler.split()[0]):
        raise ExportError(
            'export: format="aoti" compiles C++, and no compiler was found: install g++ or set CXX, or '
            'write format="pt2", which needs none'
        )
    program = _program(job)
    options: dict[str, object] = {"aot_inductor.metadata": record(job.network)}
    if isinstance(job.network, FrozenNet):
        # all work is in run_plan, which chooses its kernels where it runs: the rest need not be of this CPU
        options |= {"cpp.march": "", "cpp.simdlen": 1}
    try:
        with torch.no_grad():
            aoti_compile_and_package(program, package_path=str(job.file), inductor_configs=options)
    except Exception as error:  # the compilers behind it raise what they like
        raise ExportError(f"export: AOTInductor does not compile the network: {first_line(error)}") from error
    return job.network


def write_onnx(job: Job) -> nn.Module:
    try:
        import onnx

        from cnnfast.export.onnx_graph import to_onnx
    except ImportError as error:
        raise ExportError(
            f'export: format="onnx" needs the package onnx ({error}): pip install onnx'
        ) from error
    network = _planned(job)
    if 4 * network.weights.numel() > _PROTOBUF_LIMIT:
        raise ExportError(
            f"export: {network.weights.numel():,} constants are more than one ONNX file holds (2 GiB): write "
            'format="pt2"'
        )
    plan = decode(network.plan)
    shape = tuple(job.inputs[0].shape)
    model = to_onnx(plan, network.weights.numpy(), network._names, shape, job.dynamic_batch)
    onnx.helper.set_model_props(model, record(job.network))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(job.file))
    # Winograd's algorithm is a matter of our own kernels: the file's numbers are those of direct convolution
    direct = plan.with_conv_attributes(largest_tile=DIRECT, tuned=0)
    return network.with_plan(encode(direct, network.weights))


def _planned(job: Job) -> FrozenNet:
    """The network as one plan; other modules are frozen here."""
    network = job.network
    if not isinstance(network, (FrozenNet, JoinedNet, EagerNet)):
        try:
            network = freeze(network, job.inputs, winograd=False)
        except UnsupportedNetworkError as error:
            raise ExportError(f'export: format="onnx" is written from a plan: {error}') from error
    if not isinstance(network, FrozenNet):
        raise ExportError(
            'export: format="onnx" is written from one plan for the whole network, and not all layers of '
            f'this one have a place in it: format="torchscript", "pt2", "aoti" take it.\n{network.report()}'
        )
    if decode(network.plan).half:
        raise ExportError(
            'export: format="onnx" holds float32 networks, and this one is frozen in bfloat16: freeze it in '
            'float32 for this format, or write format="torchscript", "pt2", "aoti"'
        )
    return network


def _program(job: Job) -> torch.export.ExportedProgram:
    shapes, inputs = None, job.inputs
    if job.dynamic_batch:
        batch = torch.export.Dim("batch")
        shapes = tuple({0: batch} if isinstance(value, Tensor) else None for value in inputs)
        inputs = with_one_image_more(inputs)  # torch.export takes a batch of one for a constant
    with torch.no_grad():
        return torch.export.export(job.network, inputs, dynamic_shapes=shapes)


def with_one_image_more(inputs: tuple) -> tuple:
    return tuple(torch.cat([value, value[:1]]) if isinstance(value, Tensor) else value for value in inputs)


FORMATS: dict[str, Format] = {
    "torchscript": Format(write_torchscript),
    "pt2": Format(write_pt2, ".pt2", "torch.export runs the network once"),
    "aoti": Format(write_aoti, ".pt2", "torch.export runs the network once"),
    "onnx": Format(write_onnx, ".onnx", "the file has its image size"),
}


@contextmanager
def quiet() -> Iterator[None]:
    """torch.jit calls itself deprecated; this is the format that was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated.*")
        yield


def first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
