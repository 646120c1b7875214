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

import safetensors.torch
import torch
from torch import Tensor

from cnnfast.files import replacing
from cnnfast.plan.codec import decode
from cnnfast.plan.nodes import PlanError

FORMAT_NAME = "cnnfast.frozen"
FORMAT_VERSION = 1
_TENSORS = {"weights": torch.float32, "plan": torch.int64}
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
    content = Path(path).read_bytes()
    metadata = _metadata(path, content)
    _check_format(path, metadata)
    try:
        tensors = safetensors.torch.load(content)
    except (
        safetensors.SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise FileFormatError(f"{path} is damaged or cut off ({error}): save the network again") from error
    _check_tensors(path, tensors)
    if metadata.get("sha256") != _digest(tensors, metadata):
        raise FileFormatError(f"{path} is damaged (its SHA-256 does not match): copy or save it again")
    try:
        network = json.loads(metadata["network"])
        decode(tensors["plan"])
    except PlanError as error:
        raise FileFormatError(f"{path}: {error}") from error
    except (ValueError, KeyError) as error:
        raise FileFormatError(f"{path} lacks the description of the network: save it again") from error
    return tensors["weights"].clone(), tensors["plan"].clone(), network


def _metadata(path: object, content: bytes) -> dict[str, str]:
    """The metadata in a safetensors header."""
    try:
        (length,) = _LENGTH.unpack_from(content)
        header = json.loads(content[_LENGTH.size : _LENGTH.size + length])
        metadata = header["__metadata__"]
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("metadata must be words")
    except (struct.error, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise FileFormatError(
            f"{path} is no file that FrozenNet.save wrote, or it is damaged: save the network again "
            "(TorchScript "
            "archives are loaded by torch.jit.load)"
        ) from error
    return metadata


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


def _check_tensors(path: object, tensors: dict[str, Tensor]) -> None:
    kinds = {name: (tensor.dtype, tensor.dim()) for name, tensor in tensors.items()}
    if kinds != {name: (dtype, 1) for name, dtype in _TENSORS.items()}:
        raise FileFormatError(f"{path} holds other tensors than a frozen network has: save the network again")


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of everything but itself."""
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    sizes = {name: tensors[name].numel() for name in _TENSORS}
    digest = hashlib.sha256(json.dumps([rest, sizes], sort_keys=True).encode())
    for name in _TENSORS:
        digest.update(memoryview(tensors[name].numpy()).cast("B"))
    return digest.hexdigest()
