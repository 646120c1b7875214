"""Builds kernels of csrc/cuda for the host, with sanitizers, and calls them (tests/cuda/host/protocol.h)."""

import os
import shlex
import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(__file__).resolve().parent / "host"
CSRC = ROOT / "csrc"
FLAGS = (
    *("-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"),
    *("-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"),
)
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def compiler() -> list[str] | None:
    """The C++ compiler as a command, or None where there is none."""
    command = shlex.split(os.environ.get("CXX", "g++"))
    return command if shutil.which(command[0]) else None


def build(folder: Path, name: str) -> Path:
    """Compiles host/<name>.cpp and the emulation into folder/<name>."""
    objects = []
    for source in (name, "emulation"):
        target = folder / f"{source}.o"
        command = [*compiler(), *FLAGS, f"-I{HOST}", f"-I{CSRC}", "-c", str(HOST / f"{source}.cpp")]
        if not target.exists():
            subprocess.run([*command, "-o", str(target)], check=True)
        objects.append(str(target))
    program = folder / name
    subprocess.run([*compiler(), *FLAGS, *objects, "-o", str(program)], check=True)
    return program


@dataclass
class Buffer:
    """Memory that a kernel gets.

    data: what it holds, None for memory that is poisoned. bytes: its size, where there is no data. output:
    its contents come back. misalignment: bytes by which it misses a 16-byte boundary.
    """

    data: bytes | None = None
    bytes: int = 0
    output: bool = False
    misalignment: int = 0
    present: bool = True

    def encode(self) -> bytes:
        size = self.bytes if self.data is None else len(self.data)
        head = struct.pack("4q", self.present, self.output, self.misalignment, size)
        if not self.present:
            return head
        return head + struct.pack("q", self.data is not None) + (self.data or b"")


ABSENT = Buffer(present=False)


@dataclass
class Call:
    name: str
    ints: list[int]
    doubles: list[float]
    buffers: list[Buffer]
    seed: int = 0

    def encode(self) -> bytes:
        name = self.name.encode()
        parts = [struct.pack("q", len(name)), name, struct.pack("Q", self.seed)]
        parts += [struct.pack("q", len(self.ints)), struct.pack(f"{len(self.ints)}q", *self.ints)]
        parts += [struct.pack("q", len(self.doubles)), struct.pack(f"{len(self.doubles)}d", *self.doubles)]
        parts += [struct.pack("q", len(self.buffers)), *(buffer.encode() for buffer in self.buffers)]
        return b"".join(parts)


@dataclass(frozen=True)
class Traffic:
    """Bytes and accesses that the kernels of a call made to one buffer."""

    loaded: int
    stored: int
    loads: int
    stores: int


@dataclass
class Answer:
    outputs: dict[int, bytes] = field(default_factory=dict)
    traffic: list[Traffic] = field(default_factory=list)


def run(program: Path, calls: list[Call]) -> list[Answer]:
    """All calls in one process; a sanitizer's finding fails the test and shows its report."""
    process = subprocess.run(
        [program], input=b"".join(call.encode() for call in calls), capture_output=True, env=environment()
    )
    assert process.returncode == 0, process.stderr.decode()
    answers, position = [], 0
    for call in calls:
        answer = Answer()
        for place, buffer in enumerate(call.buffers):
            if buffer.present and buffer.output:
                size = buffer.bytes if buffer.data is None else len(buffer.data)
                answer.outputs[place] = process.stdout[position : position + size]
                position += size
        for _ in call.buffers:
            answer.traffic.append(Traffic(*struct.unpack_from("4q", process.stdout, position)))
            position += 32
        answers.append(answer)
    assert position == len(process.stdout)
    return answers


def environment() -> dict[str, str]:
    return os.environ | ENVIRONMENT


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def tensor_of(data: bytes, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()).view(dtype).view(*shape)


@dataclass(frozen=True)
class Placement:
    """Where an image's channels lie: `before` and `behind` of them belong to others, in every pixel."""

    before: int = 0
    behind: int = 0
    misalignment: int = 0  # elements by which the first pixel misses a 16-byte boundary

    def pixel(self, channels: int) -> int:
        return self.before + channels + self.behind


DENSE = Placement()


class ImageBuffer:
    """A (pixels, channels) matrix as the kernels get it: a slice of pixels that are longer.

    The address that the kernel gets is that of the slice; its last pixel ends where the memory ends. What
    lies between the pixels is NaN, and must be so afterwards.
    """

    def __init__(self, matrix: Tensor | None, shape, dtype, placement: Placement, output: bool) -> None:
        self.pixels, self.channels = shape
        self.dtype, self.placement = dtype, placement
        self.stride = placement.pixel(self.channels)
        size = max(0, (self.pixels - 1) * self.stride + self.channels) if self.pixels else 0
        flat = torch.full((size,), float("nan"), dtype=dtype)
        if matrix is not None and self.pixels:
            flat.as_strided((self.pixels, self.channels), (self.stride, 1)).copy_(matrix)
        element = torch.empty(0, dtype=dtype).element_size()
        misalignment = (placement.misalignment + placement.before) * element % 16
        self.buffer = Buffer(raw(flat) if size else b"", output=output, misalignment=misalignment)

    def decode(self, data: bytes) -> Tensor:
        """The image, after a look at what lies between its pixels."""
        if not self.pixels:
            return torch.empty(self.pixels, self.channels, dtype=self.dtype)
        flat = tensor_of(data, self.dtype, -1)
        image = flat.as_strided((self.pixels, self.channels), (self.stride, 1)).clone()
        flat.as_strided((self.pixels, self.channels), (self.stride, 1)).fill_(float("nan"))
        assert flat.isnan().all(), "a kernel wrote between the pixels of a slice"
        return image
