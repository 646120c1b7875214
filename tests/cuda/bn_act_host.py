"""Builds the kernel body of csrc/cuda/bn_act.cuh for the host, with sanitizers, and runs cases through it."""

import os
import shlex
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bn_act_cases import ACTIVATIONS, DTYPES, Case
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(__file__).resolve().parent / "host"
CSRC = ROOT / "csrc"
FLAGS = (
    *("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
)


@dataclass
class Result:
    lanes: int
    blocks: int
    output: Tensor


def compiler() -> list[str] | None:
    """The C++ compiler as a command, or None where there is none."""
    command = shlex.split(os.environ.get("CXX", "g++"))
    return command if shutil.which(command[0]) else None


def build(folder: Path, name: str) -> Path:
    """Compiles host/<name>.cpp into folder/<name>."""
    program = folder / name
    command = [*compiler(), *FLAGS, f"-I{HOST}", f"-I{CSRC}", str(HOST / f"{name}.cpp"), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def run(program: Path, cases: list[Case]) -> list[Result]:
    """All cases in one process; a sanitizer's finding fails the call and shows its report."""
    process = subprocess.run(
        [program],
        input=b"".join(map(_encode, cases)),
        capture_output=True,
        env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    )
    assert process.returncode == 0, process.stderr.decode()
    results, position = [], 0
    for case in cases:
        lanes, blocks = struct.unpack_from("2q", process.stdout, position)
        size = case.input.numel() * case.input.element_size()
        raw = process.stdout[position + 16 : position + 16 + size]
        position += 16 + size
        results.append(Result(lanes, blocks, _from_nhwc(raw, case.input)))
    assert position == len(process.stdout)
    return results


def _encode(case: Case) -> bytes:
    dtype = case.input.dtype
    header = struct.pack(
        "11qd",
        DTYPES.index(dtype),
        case.input.numel(),
        case.input.shape[1],
        ACTIVATIONS.index(case.activation),
        case.blocks,
        case.threads,
        case.seed,
        case.misalignment,
        case.weight is not None,
        case.bias is not None,
        case.residual is not None,
        case.eps,
    )
    floats = [
        t.float().numpy().tobytes() for t in (case.mean, case.var, case.weight, case.bias) if t is not None
    ]
    images = [_nhwc_bytes(t) for t in (case.input, case.residual) if t is not None]
    return b"".join([header, *floats, *images])


def _nhwc_bytes(image: Tensor) -> bytes:
    return image.permute(0, 2, 3, 1).flatten().view(torch.uint8).numpy().tobytes()


def _from_nhwc(raw: bytes, like: Tensor) -> Tensor:
    batch, channels, height, width = like.shape
    flat = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy()).view(like.dtype)
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
