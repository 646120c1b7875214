"""`python -m cnnfast doctor`: what is built, what this machine has, what will run."""

import argparse
import importlib.metadata
import os
import platform
import shlex
import shutil
import sys
from pathlib import Path

import torch

from cnnfast import _ext, data, fetch
from cnnfast.benchmarking import machine

Section = list[tuple[str, str]]


def main(argv: list[str]) -> int:
    """Print the report; 1 where the compiled operators cannot be used, else 0."""
    parser = argparse.ArgumentParser(prog="python -m cnnfast doctor", description=__doc__)
    parser.add_argument("--isas", action="store_true", help="only the runnable instruction sets, best first")
    if parser.parse_args(argv).isas:
        return _print_isas()
    for title, section in (("built", built), ("machine", has), ("will run", will_run), ("data", where)):
        print(title)
        for name, value in section():
            print(f"  {name:<18}{value}")
    return 0 if _ext.AVAILABLE else 1


def built() -> Section:
    """What the build left in the package."""
    info = _ext.build_info()
    if not info:
        return [("operators", f"no: {_ext.REASON}")]
    cuda = " ".join(info["cuda_archs"]) if isinstance(info["cuda_archs"], list) else str(info["cuda_archs"])
    return [
        ("operators", f"for torch {info['torch']}"),
        ("instruction sets", " ".join(info["isas"])),
        ("CUDA kernels", f"yes: {cuda}" if info["cuda"] else "no: built for the CPU only"),
        ("Triton kernels", _triton_kernels(info)),
        ("compiler", str(info["compiler"])),
    ]


def _triton_kernels(info: dict) -> str:
    archs = " ".join(f"sm_{arch}" for arch in info.get("triton_archs", ()))
    if not archs:
        return "no: built without CNNFAST_TRITON_AOT"
    count = len(torch.ops.cnnfast.triton_kernels()) if _ext.AVAILABLE else 0
    return f"yes: {count or 'unknown number'}, {archs} and PTX"


def _compiler() -> str:
    """The first word of CXX may be a launcher."""
    words = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    found = shutil.which(words[0])
    return " ".join([found, *words[1:]]) if found else f"no {words[0]} found"


def has() -> Section:
    """What the machine offers."""
    return [
        ("processor", machine.cpu_name()),
        ("of its features", " ".join(machine.instruction_sets()) or "none that the kernels use"),
        ("cores", f"{machine.usable_cores()} for this process, {os.cpu_count()} in all"),
        ("memory", _memory()),
        ("GPU", _gpu()),
        ("nvcc", shutil.which("nvcc") or "not found"),
        ("compiler", _compiler()),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__}, {_torch_cuda()}"),
        ("triton", _version("triton")),
    ]


def will_run() -> Section:
    """What the operators do on this machine, in this environment."""
    threads = [("threads", f"{torch.get_num_threads()} (torch.set_num_threads, OMP_NUM_THREADS)")]
    if not _ext.AVAILABLE:
        return [("CPU tensors", f"plain PyTorch: {_ext.REASON}"), ("CUDA tensors", "plain PyTorch"), *threads]
    from cnnfast import _info

    forced = os.environ.get("CNNFAST_CPU_ISA")
    isa = f"compiled kernels, {_ext.active_isa()}" + (" (CNNFAST_CPU_ISA)" if forced else "")
    threads.append(("AMX tiles", _info.amx_state() or "may be used"))
    threads.append(("OpenMP team", str(_info.openmp_threads())))
    return [("CPU tensors", isa), ("CUDA tensors", _cuda_state()), *threads]


def where() -> Section:
    """Where the data set lies."""
    try:
        return [("Fashion-MNIST", str(data.find(download=False)))]
    except data.DataError as error:
        return [("Fashion-MNIST", str(error)), ("would go to", str(fetch.cache_folder()))]


def _print_isas() -> int:
    if not _ext.AVAILABLE:
        print(f"cnnfast doctor: {_ext.REASON}", file=sys.stderr)
        return 1
    from cnnfast import _info

    print(" ".join(_info.available_isas()))
    return 0


def _memory() -> str:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return "unknown"
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
    total, free = (int(fields[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    limit = Path("/sys/fs/cgroup/memory.max")
    bound = limit.read_text().strip() if limit.is_file() else "max"
    group = "" if bound == "max" else f", limited to {int(bound) / 2**30:.1f} GiB by its control group"
    return f"{total:.1f} GiB, {free:.1f} available{group}"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    cards = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return ", ".join(f"{c.name} (sm_{c.major}{c.minor}, {c.total_memory / 2**30:.0f} GiB)" for c in cards)


def _cuda_state() -> str:
    if not torch.cuda.is_available():
        return "none: torch sees no GPU"
    kinds = ["CUDA kernels"] if _ext.build_info()["cuda"] else []
    if _version("triton") != "not installed":
        kinds.append("Triton kernels")
    chosen = os.environ.get("CNNFAST_BACKEND")
    return (", ".join(kinds) or "plain PyTorch") + (f" (CNNFAST_BACKEND={chosen})" if chosen else "")


def _torch_cuda() -> str:
    return f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
