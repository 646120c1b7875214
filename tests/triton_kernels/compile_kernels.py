"""Compiles kernels for explicit GPUs, without one, and reports what their machine code uses.

Run as a program of its own, without TRITON_INTERPRET:

    python compile_kernels.py facts.json            the short list of the default test run
    python compile_kernels.py facts.json --all      every kernel, class of shapes, type and architecture
    python compile_kernels.py --rewrite             all of them, and resources.json beside this file anew

The figures come from the machine code (cuobjdump), not from the compiler's intermediate forms.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import triton
from kernel_variants import SHORT, Variant, tile_variants, variants
from triton.backends.compiler import GPUTarget

from cnnfast.triton.tiles import LIMITS, programs_per_processor

TABLE = Path(__file__).resolve().parent / "resources.json"


def machine_code_facts(cubin: bytes) -> dict:
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, code = (
            subprocess.run([tool, flag, str(path)], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    return {
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),
        "stack": int(re.search(r"STACK:(\d+)", usage).group(1)),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "tensor_core": sorted(set(re.findall(r"\b(?:HMMA|HGMMA|UTC[A-Z]*MMA|OMMA|QMMA)[\w.]*", code))),
        "accesses": _accesses(code),
    }


def _accesses(code: str) -> dict[str, int]:
    """Instructions that touch global memory, by kind and by bytes of one thread: {"LDGSTS 16": 8, ...}."""
    found = Counter()
    for name, modifiers in re.findall(r"\b(LDGSTS|LDG|STG|UTMALDG|UBLKCP)((?:\.\w+)*)", code):
        width = re.search(r"\.(128|64|U16|S16|U8|S8)\b", modifiers)
        size = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}[width.group(1)] if width else 4
        found[f"{name} {size}"] += 1
    return dict(sorted(found.items()))


def facts_of(variant: Variant) -> dict:
    signature, tile = variant.signature, variant.tile
    target = GPUTarget("cuda", variant.capability, 32)
    kernel = triton.compile(signature.source(), target=target, options=signature.options())
    facts = machine_code_facts(kernel.asm["cubin"])
    shared = kernel.metadata.shared
    return {
        "name": variant.name,
        "tile": None if tile is None else list(tile[:5]),
        "warps": signature.num_warps,
        "shared": shared,
        "shared_reckoned": variant.shared_reckoned,
        "shared_limit": LIMITS[variant.capability].program_shared_bytes,
        "programs_per_processor": programs_per_processor(
            variant.capability, facts["registers"], shared, signature.num_warps
        ),
        **facts,
    }


def _compile_numbered(number: int) -> dict:
    return facts_of(_listed(everything=True)[number])


def _listed(everything: bool) -> list[Variant]:
    listed = [*variants(), *tile_variants()] if everything else [v for v in variants() if v.name in SHORT]
    assert len({variant.name for variant in listed}) == len(listed)
    return listed


def collect(everything: bool, processes: int) -> list[dict]:
    listed = _listed(everything)
    if not everything:
        return [facts_of(variant) for variant in listed]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(_compile_numbered, range(len(listed)), chunksize=4))


def compilers() -> dict[str, str]:
    """What the figures depend on."""
    return {"triton": triton.__version__}


def write_table(report: dict) -> None:
    """A line per kernel, for readable differences."""
    rows = (f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in report["kernels"].items())
    head = f'{{\n "compilers": {json.dumps(report["compilers"])},\n "kernels": {{\n'
    TABLE.write_text(head + ",\n".join(rows) + "\n }\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--rewrite", action="store_true")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    records = collect(arguments.all or arguments.rewrite, arguments.processes)
    report = {"compilers": compilers(), "kernels": {record.pop("name"): record for record in records}}
    if arguments.output:
        arguments.output.write_text(json.dumps(report))
    if arguments.rewrite:
        write_table(report)
        print(f"{TABLE}: {len(records)} kernels", file=sys.stderr)


if __name__ == "__main__":
    main()
