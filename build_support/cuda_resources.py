"""What the CUDA kernels take of a processor, read from the compiler, for every architecture. Needs no GPU.

`python -m build_support.cuda_resources` compiles and compares with cuda_resources.json beside this file,
`--write` writes that file, `--arch sm_90` and `--source lrn` take a part.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from .cuda import NVCC_FLAGS, find_nvcc, nvcc_version, wheel_include_dirs
from .environment import find_torch
from .flags import isystem

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).resolve().with_suffix(".json")
BLOCK_THREADS = 256  # kBlockThreads of csrc/cuda/memory.h


@dataclass(frozen=True)
class Processor:
    """Limits of one multiprocessor (CUDA programming guide, table of technical specifications)."""

    warps: int
    blocks: int
    shared_bytes: int
    registers: int = 65536


ARCHS = {
    "sm_80": Processor(64, 32, 164 * 1024),
    "sm_86": Processor(48, 16, 100 * 1024),
    "sm_89": Processor(48, 24, 100 * 1024),
    "sm_90": Processor(64, 32, 228 * 1024),
    "sm_100": Processor(64, 32, 228 * 1024),
    "sm_120": Processor(48, 24, 100 * 1024),
}


@dataclass(frozen=True)
class Resources:
    """Of one kernel. occupancy: resident warps by what the processor holds; vectors: accesses of 16 bytes."""

    registers: int
    spilled_bytes: int
    stack_bytes: int
    shared_bytes: int
    occupancy: float
    vector_loads: int
    vector_stores: int


def occupancy(arch: str, registers: int, shared_bytes: int) -> float:
    """Resident warps of blocks of 256 threads, as a share of what the processor can hold."""
    processor, warps = ARCHS[arch], BLOCK_THREADS // 32
    registers_of_warp = (registers * 32 + 255) // 256 * 256  # allocated by 256
    by_registers = processor.registers // registers_of_warp // warps
    block_bytes = (shared_bytes + 1024 + 127) // 128 * 128  # 1 KiB of every block is the system's
    by_shared = processor.shared_bytes // block_bytes
    blocks = min(by_registers, by_shared, processor.blocks, processor.warps // warps)
    return round(blocks * warps / processor.warps, 3)


def sources() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return result.stdout + result.stderr


def _compile(nvcc: str, source: Path, arch: str, folder: Path) -> tuple[str, str]:
    """PTX, and what the assembler says of it."""
    torch = find_torch()
    includes = isystem([*torch.include_dirs, *wheel_include_dirs(torch, nvcc_version(nvcc).split(".")[0])])
    ptx, cubin = folder / f"{source.stem}.{arch}.ptx", folder / f"{source.stem}.{arch}.cubin"
    flags = ["-O3", "-std=c++20", *NVCC_FLAGS, f"-I{ROOT / 'csrc'}", *includes]
    _run([nvcc, *flags, f"-arch={arch}", "-ptx", str(source), "-o", str(ptx)])
    report = _run([nvcc, "-O3", f"-arch={arch}", "-cubin", "-Xptxas", "-v", str(ptx), "-o", str(cubin)])
    return ptx.read_text(), report


def _vector_accesses(ptx: str) -> dict[str, tuple[int, int]]:
    """Per mangled name: loads and stores of global memory of 16 bytes."""
    found = {}
    for body in re.split(r"\.entry ", ptx)[1:]:
        name = re.match(r"\w+", body).group()
        loads = re.findall(r"ld\.global(?:\.nc)?\.(?:v4\.\w32|v2\.\w64|v8\.\w16)", body)
        stores = re.findall(r"st\.global\.(?:v4\.\w32|v2\.\w64|v8\.\w16)", body)
        found[name] = len(loads), len(stores)
    return found


def _readable(names: list[str]) -> list[str]:
    """As c++filt has them, without namespaces, arguments and the types of template arguments."""
    result = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    readable = []
    for name in result.stdout.splitlines():
        name = re.sub(r"^void ", "", name).replace("cnnfast::cuda::", "")
        name = name[: name.rindex(">(") + 1] if ">(" in name else name.split("(")[0]
        readable.append(re.sub(r"\((bool|int|Source|PoolKind)\)", "", name))
    return readable


def measure(source: Path, arch: str, nvcc: str) -> dict[str, Resources]:
    """Per kernel of the source, by its readable name."""
    with tempfile.TemporaryDirectory() as folder:
        ptx, report = _compile(nvcc, source, arch, Path(folder))
    accesses = _vector_accesses(ptx)
    blocks = re.split(r"Compiling entry function '", report)[1:]
    names = _readable([block.split("'")[0] for block in blocks])
    result = {}
    for name, block in zip(names, blocks, strict=True):
        numbers = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block
        )
        shared = re.search(r"(\d+) bytes smem", block)
        registers = int(re.search(r"Used (\d+) registers", block).group(1))
        shared_bytes = int(shared.group(1)) if shared else 0
        result[name] = Resources(
            registers=registers,
            spilled_bytes=int(numbers.group(2)) + int(numbers.group(3)),
            stack_bytes=int(numbers.group(1)),
            shared_bytes=shared_bytes,
            occupancy=occupancy(arch, registers, shared_bytes),
            vector_loads=accesses[block.split("'")[0]][0],
            vector_stores=accesses[block.split("'")[0]][1],
        )
    return result


def read_table() -> dict:
    """{"nvcc": version, "kernels": {arch: {source: {kernel: numbers}}}}"""
    return json.loads(TABLE.read_text())


def differences(source: Path, arch: str, measured: dict[str, Resources], nvcc: str) -> list[str]:
    """What is worse than the table, or unknown to it; with the table's own compiler, every change."""
    table = read_table()
    known = {name: Resources(**row) for name, row in table["kernels"][arch][source.stem].items()}
    exact = nvcc_version(nvcc) == table["nvcc"]
    found = [f"{arch} {name}: not in the table" for name in measured.keys() - known.keys()]
    found += [f"{arch} {name}: only in the table" for name in known.keys() - measured.keys()]
    for name in measured.keys() & known.keys():
        new, old = measured[name], known[name]
        worse = (
            new.occupancy < old.occupancy
            or new.vector_loads < old.vector_loads
            or new.vector_stores < old.vector_stores
        )
        if worse or (exact and new != old):
            found.append(f"{arch} {name}: {new}, and in the table {old}")
    return found


def spills(arch: str, measured: dict[str, Resources]) -> list[str]:
    return [f"{arch} {name}: {r}" for name, r in measured.items() if r.spilled_bytes]


def write_table(rows: dict, nvcc: str) -> None:
    """One line per kernel, for changes to be read line by line. What was not compiled this time stays."""
    if TABLE.exists() and read_table()["nvcc"] == nvcc_version(nvcc):
        for arch, by_source in read_table()["kernels"].items():
            for source, kernels in by_source.items():
                old = {name: Resources(**row) for name, row in kernels.items()}
                rows.setdefault(arch, {}).setdefault(source, old)
    rows = {arch: dict(sorted(rows[arch].items())) for arch in ARCHS if arch in rows}
    lines = ["{", f'  "nvcc": {json.dumps(nvcc_version(nvcc))},', '  "kernels": {']
    for a, (arch, by_source) in enumerate(rows.items()):
        lines.append(f'    "{arch}": {{')
        for s, (source, kernels) in enumerate(by_source.items()):
            lines.append(f'      "{source}": {{')
            body = [
                f"        {json.dumps(name)}: {json.dumps(asdict(r))}" for name, r in sorted(kernels.items())
            ]
            lines.append(",\n".join(body))
            lines.append("      }" + ("," if s + 1 < len(by_source) else ""))
        lines.append("    }" + ("," if a + 1 < len(rows) else ""))
    TABLE.write_text("\n".join([*lines, "  }", "}"]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    parser.add_argument("--arch", choices=ARCHS, action="append")
    parser.add_argument("--source", choices=[path.stem for path in sources()], action="append")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("cuda-resources: skipped: no nvcc in CUDA_HOME, PATH or /usr/local/cuda")
        return
    wanted = [path for path in sources() if not arguments.source or path.stem in arguments.source]
    rows, wrong = {}, []
    for arch in arguments.arch or ARCHS:
        for source in wanted:
            measured = measure(source, arch, nvcc)
            rows.setdefault(arch, {})[source.stem] = measured
            wrong += spills(arch, measured)
            if not arguments.write:
                wrong += differences(source, arch, measured, nvcc)
            print(f"{arch} {source.name}: {len(measured)} kernels", flush=True)
    if arguments.write:
        write_table(rows, nvcc)
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
