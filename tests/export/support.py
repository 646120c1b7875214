"""How a process that has the library loads each format."""

import json
import re
import subprocess
import zipfile

import pytest
import torch

from cnnfast.export import FORMATS


def name_of(format):
    """A file name that the format allows."""
    return f"net{FORMATS[format].suffix or '.pt'}"


def skip_without_packages(format):
    if format == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")


def loaded(path, format):
    """A callable from tensor to tensor."""
    if format == "onnx":
        import onnxruntime  # onnx alone has an evaluator too, but a slow one

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run(None, {"input": x.contiguous().numpy()})[0])
    if format == "aoti":
        return torch._inductor.aoti_load_package(str(path))
    return torch.export.load(path).module() if format == "pt2" else torch.jit.load(path)


def record_of(path, format):
    """What the file says of who wrote it."""
    if format == "onnx":
        import onnx

        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    if format == "aoti":
        return torch._inductor.aoti_load_package(str(path)).get_metadata()
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("cnnfast.json")]
        return json.loads(archive.read(name))


def avx_instructions(package, folder):
    """How many instructions of an AOTInductor package name registers that not every x86-64 CPU has."""
    with zipfile.ZipFile(package) as archive:
        libraries = [archive.extract(name, folder) for name in archive.namelist() if name.endswith(".so")]
    assert libraries
    command = ["objdump", "--disassemble", *libraries]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert code.count("\n") > 1000
    return len(re.findall("%[yz]mm[0-9]", code))
