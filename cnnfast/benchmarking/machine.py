"""The machine that a benchmark ran on: names and sizes read from the system, nothing measured."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import cnnfast
from cnnfast import _ext

# Flags of /proc/cpuinfo that decide which kernels can run, in rising order.
_ISA_FLAGS = (
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
_PACKAGES = ("torch", "numpy", "openvino", "onnxruntime", "onnx")


def cpuinfo(path: str = "/proc/cpuinfo") -> dict[str, str]:
    """The first processor's entry; empty where the system has no such file."""
    fields: dict[str, str] = {}
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return fields
    for line in text.split("\n\n", 1)[0].splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields[key.strip()] = value.strip()
    return fields


def cpu_name() -> str:
    return cpuinfo().get("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    present = set(cpuinfo().get("flags", "").split())
    return [flag for flag in _ISA_FLAGS if flag in present]


def usable_cores() -> int:
    """Cores that this process may run on (a container may have fewer than the machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def caches() -> dict[str, str]:
    """Sizes of the first core's caches, as the kernel prints them: {"L1d": "32K", "L2": "1024K", ...}."""
    return {cache.name: cache.size for cache in _first_core_caches()}


def cache_shares(threads: int) -> dict[str, int]:
    """Bytes of each cache of data that one of `threads` busy threads can count on: {"L1d": 32768, "L2": ...}.

    A cache that several processors share is divided among them, or among the threads where those are fewer.
    Empty where the system names no caches.
    """
    return {
        cache.name: _bytes(cache.size) // min(threads, cache.sharers)
        for cache in _first_core_caches()
        if cache.name != "L1i"
    }


class _Cache(NamedTuple):
    name: str
    size: str
    sharers: int  # processors


def _first_core_caches(folder: str = "/sys/devices/system/cpu/cpu0/cache") -> list[_Cache]:
    found = []
    for index in sorted(Path(folder).glob("index*")):
        try:
            level, kind, size, sharers = (
                (index / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list")
            )
        except OSError:
            continue
        suffix = {"Data": "d", "Instruction": "i"}.get(kind, "")
        found.append(_Cache(f"L{level}{suffix}", size, _length(sharers)))
    return found


def _length(cpu_list: str) -> int:
    """Processors in a list such as "0-3,8"."""
    ends = [[int(end) for end in part.split("-")] for part in cpu_list.split(",")]
    return sum(end[-1] - end[0] + 1 for end in ends)


def _bytes(size: str) -> int:
    """Of a size such as "1024K"."""
    return int(size[:-1]) << {"K": 10, "M": 20, "G": 30}[size[-1]]


def versions() -> dict[str, str]:
    """Versions of the installed packages that matter to a timing; absent ones are left out."""
    found = {"python": platform.python_version(), "cnnfast": cnnfast.__version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """Everything the header of a benchmark names."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "instruction_sets": instruction_sets(),
        "cnnfast_isa": _ext.active_isa() if _ext.AVAILABLE else None,
        "caches": caches(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average": load,
        "versions": versions(),
    }
