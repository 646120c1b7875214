"""What the machine code of kernels must and does use: rules for all, and a table of exact figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
TABLE = FOLDER / "resources.json"
REWRITE = "python tests/triton_kernels/compile_kernels.py --rewrite"
# The instructions that multiply on tensor cores: warp by warp; four warps together; one thread for all.
TENSOR_CORES = {80: "HMMA.", 86: "HMMA.", 89: "HMMA.", 90: "HGMMA.", 100: "UTCHMMA", 120: "HMMA."}


def compile_kernels(output: Path, everything: bool, cache: Path, timeout: int) -> dict:
    """Compiled in a process of its own: the interpreter's switch must not be set."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, str(FOLDER / "compile_kernels.py"), str(output)]
    if everything:
        command.append("--all")
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(output.read_text())


def broken_rules(name: str, facts: dict) -> list[str]:
    """What is wrong with a kernel whatever the compiler's version."""
    _, shape, kind, architecture, *_ = name.split("/")
    broken = []
    if facts["spills"] or facts["stack"]:
        broken.append(f"{facts['spills']} spills, a stack of {facts['stack']} bytes")
    if not 0 < facts["registers"] <= 255 or facts["programs_per_processor"] < 1:
        broken.append(
            f"{facts['registers']} registers, {facts['programs_per_processor']} programs a processor"
        )
    if facts["shared"] > facts["shared_limit"]:
        broken.append(f"{facts['shared']} bytes of shared memory, more than {facts['shared_limit']}")
    if facts["tile"] is not None:
        broken += _broken_product_rules(kind, int(architecture.removeprefix("sm_")), facts)
        if not shape.startswith(("odd", "first")):
            broken += _broken_access_rules(facts)
    return broken


def _broken_product_rules(kind: str, capability: int, facts: dict) -> list[str]:
    broken = []
    if facts["shared"] > facts["shared_reckoned"]:
        broken.append(f"{facts['shared']} bytes of shared memory, {facts['shared_reckoned']} reckoned")
    # The wider instructions of newer chips take 64 rows at least.
    found, wanted = facts["tensor_core"], TENSOR_CORES[capability] if facts["tile"][0] >= 64 else "HMMA."
    if kind == "float32":
        if found:
            broken.append(f"float32 products on tensor cores: {found}")
    elif not found or not all(name.startswith(wanted) for name in found):
        broken.append(f"tensor core instructions {found} instead of {wanted}*")
    return broken


def _broken_access_rules(facts: dict) -> list[str]:
    accesses = facts["accesses"]
    wide = [name for name in accesses if name.endswith(" 16")]
    loads = [name for name in wide if not name.startswith("STG")]
    if not loads or "STG 16" not in wide:
        return [f"no 16-byte loads or stores: {accesses}"]
    # Parameters of a channel are copied 4 bytes at a time; an operand in such steps would be the most of it.
    if accesses.get("LDGSTS 4", 0) >= accesses.get("LDGSTS 16", 1):
        return [f"an operand is copied 4 bytes at a time: {accesses}"]
    return []


def differences(report: dict, table: dict, everything: bool) -> list[str]:
    """Lines "kernel: field was ..., is ..." against the table; everything: kernels must be the same set."""
    lines = []
    for name, facts in report["kernels"].items():
        known = table["kernels"].get(name)
        if known is None:
            lines.append(f"{name}: not in the table")
            continue
        fields = sorted(set(facts) | set(known))
        lines += [
            f"{name}: {field} was {known.get(field)}, is {facts.get(field)}"
            for field in fields
            if facts.get(field) != known.get(field)
        ]
    if everything:
        gone = sorted(set(table["kernels"]) - set(report["kernels"]))
        lines += [f"{name}: in the table, but no kernel" for name in gone]
    return lines


def check_report(report: dict, everything: bool) -> None:
    """Rules, then figures; these only where the compiler is the table's."""
    broken = [
        f"{name}: {text}" for name, facts in report["kernels"].items() for text in broken_rules(name, facts)
    ]
    assert not broken, "\n".join(broken)
    table = json.loads(TABLE.read_text())
    if report["compilers"] != table["compilers"]:
        pytest.skip(f"rules hold; the table's figures are of {table['compilers']}, not {report['compilers']}")
    changed = differences(report, table, everything)
    assert not changed, "\n".join(["resources changed; if for the better, " + REWRITE, *changed])
