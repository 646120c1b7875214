"""The Triton convolution compiled for an A100 and an H100, without one: what the machine code uses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parent / "compile_conv2d.py"
CAPABILITIES = (80, 90)
PRECISIONS = {"float32": ("tf32", "ieee"), "float16": ("tf32",), "bfloat16": ("tf32",)}
VARIANTS = [
    (capability, dtype, precision, shape)
    for capability in CAPABILITIES
    for dtype, precisions in PRECISIONS.items()
    for precision in precisions
    for shape in ("wide", "odd", "bare")
]
# The instruction that multiplies on tensor cores: warp by warp on an A100, four warps together on an H100.
INSTRUCTIONS = {80: "HMMA.", 90: "HGMMA."}


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """One record per variant. Compiled in a process of its own: the interpreter's switch must not be set."""
    pytest.importorskip("triton", reason="Triton is not installed (Linux on x86-64 only)")
    folder = tmp_path_factory.mktemp("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    output = folder / "facts.json"
    command = [sys.executable, str(PROGRAM), str(output)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]
    keys = ("capability", "dtype", "precision", "shape")
    return {tuple(record[key] for key in keys): record for record in json.loads(output.read_text())}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant)))
def test_conv2d_resources(facts, variant):
    record = facts[variant]
    assert record["spills"] == 0 and record["stack"] == 0, record
    assert 0 < record["registers"] <= 255, record
    assert 0 < record["shared"] <= record["shared_limit"], record
    # What the table of tiles reckons with is no less than what the compiler takes.
    assert record["shared"] <= record["shared_reckoned"], record


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant)))
def test_conv2d_instructions(facts, variant):
    capability, _, precision, shape = variant
    record = facts[variant]
    if precision == "ieee":
        assert record["tensor_core"] == [], record
    else:
        assert record["tensor_core"], record
        assert all(name.startswith(INSTRUCTIONS[capability]) for name in record["tensor_core"]), record
    wide = shape == "wide"
    assert (record["copies_16_bytes"] > 0) == wide, record
    assert (record["stores_16_bytes"] > 0) == wide, record
