"""Frozen networks as files: safetensors with the tensors `weights` and `plan`, and JSON in the header.

A SHA-256 covers all of it, and nothing is unpickled, so a damaged file is an error and a foreign one can
do no more than give wrong numbers.
"""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cnnfast.files import replacing
from cnnfast.plan.codec import decode
from cnnfast.plan.nodes import PlanError

FORMAT_NAME = "cnnfast.frozen"
FORMAT_VERSION = 1
_TENSORS = {"weights": torch.float32, "plan": torch.int64}
_DTYPES = {torch.float32: "F32", torch.int64: "I64"}  # as safetensors calls them
_LENGTH = struct.Struct("<Q")  # safetensors: length of the JSON header in front of it


class FileFormatError(ValueError):
    """A file that cnnfast.load cannot take; the message says why and what to do."""


def write(
    path: str | os.PathLike, weights: Tensor, plan: Tensor, network: dict[str, Any], cnnfast_version: str
) -> Path:
    """Write a file, whole or not at all. network: what else is to be kept, as JSON."""
    tensors = {"weights": weights.contiguous(), "plan": plan.contiguous()}
    metadata = {
        "format": FORMAT_NAME,
        "format_version": str(FORMAT_VERSION),
        "cnnfast": cnnfast_version,
        "torch": torch.__version__,
        "network": json.dumps(network, sort_keys=True),
    }
    metadata["sha256"] = _digest(tensors, metadata)
    content = safetensors.torch.save(tensors, metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def read(path: str | os.PathLike) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Weights, plan and network of a file, everything checked: FileFormatError, or OSError."""
    metadata, tensors = _contents(path)
    if metadata.get("sha256") != _digest(tensors, metadata):
        raise FileFormatError(f"{path} is damaged (its SHA-256 does not match): copy or save it again")
    try:
        network = json.loads(metadata["network"])
        decode(tensors["plan"])
    except PlanError as error:
        raise FileFormatError(f"{path}: {error}") from error
    except (ValueError, KeyError) as error:
        raise FileFormatError(f"{path} lacks the description of the network: save it again") from error
    return tensors["weights"], tensors["plan"], network


def _contents(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors. Safetensors checks the header; the data are read once, to where they stay."""
    with Path(path).open("rb") as stream:
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                _check_format(path, metadata)
                slices = {name: file.get_slice(name) for name in file.offset_keys()}
                shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
                dtypes = {name: part.get_dtype() for name, part in slices.items()}
        except FileFormatError:
            raise
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise FileFormatError(_not_ours(path, stream.read(4), error)) from error
        wanted = {name: _DTYPES[dtype] for name, dtype in _TENSORS.items()}
        if dtypes != wanted or any(len(shape) != 1 for shape in shapes.values()):
            raise FileFormatError(
                f"{path} holds other tensors than a frozen network has: save the network again"
            )
        (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
        stream.seek(_LENGTH.size + length)
        tensors = {name: torch.empty(shape, dtype=_TENSORS[name]) for name, shape in shapes.items()}
        for tensor in tensors.values():
            content = _bytes(tensor)
            if stream.readinto(content) != len(content):
                raise FileFormatError(f"{path} is cut off: copy or save it again")
    return metadata, tensors


def _not_ours(path: object, start: bytes, error: Exception) -> str:
    if start.startswith(b"PK"):  # a zip archive
        return (
            f"{path} is no file that FrozenNet.save wrote, but an archive of torch: torch.jit.load loads "
            "TorchScript, torch.export.load a program, torch._inductor.aoti_load_package a package of "
            "AOTInductor; or save the network with FrozenNet.save"
        )
    return f"{path} is no file that FrozenNet.save wrote, or it is damaged ({error}): save the network again"


def _check_format(path: object, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT_NAME:
        found = metadata.get("format")
        raise FileFormatError(f"{path} holds no frozen network (its format is {found!r}): save one")
    version = metadata.get("format_version", "")
    if version == str(FORMAT_VERSION):
        return
    if version.isdecimal() and int(version) > FORMAT_VERSION:
        raise FileFormatError(
            f"{path} has format version {version}, written by cnnfast {metadata.get('cnnfast')}; this "
            "cnnfast reads "
            f"version {FORMAT_VERSION}: update cnnfast, or save the network with this version"
        )
    raise FileFormatError(f"{path} has the unknown format version {version!r}: save the network again")


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of everything but itself."""
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    sizes = {name: tensors[name].numel() for name in _TENSORS}
    digest = hashlib.sha256(json.dumps([rest, sizes], sort_keys=True).encode())
    for name in _TENSORS:
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor, to read and to write."""
    return memoryview(tensor.view(torch.uint8).numpy())
