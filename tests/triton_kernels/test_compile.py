"""Some Triton kernels compiled for GPUs, without one, and what their machine code uses. All: gpu_proof.py."""

import copy
import json

import pytest
from resources import TABLE, broken_rules, check_report, compile_kernels, differences


def test_compiled_kernels_use_what_the_table_says(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed (Linux on x86-64 only)")
    report = compile_kernels(tmp_path / "facts.json", False, tmp_path / "cache", timeout=600)
    check_report(report, everything=False)


@pytest.fixture
def table():
    return json.loads(TABLE.read_text())


def test_the_table_itself_keeps_the_rules(table):
    assert len(table["kernels"]) > 300
    for name, facts in table["kernels"].items():
        assert broken_rules(name, facts) == [], name


def test_differences_say_what_changed(table):
    report = copy.deepcopy(table)
    assert differences(report, table, everything=True) == []
    name, gone, *_ = report["kernels"]
    registers = report["kernels"][name]["registers"]
    report["kernels"][name]["registers"] = 1
    report["kernels"]["new"] = report["kernels"].pop(gone)
    assert differences(report, table, everything=True) == [
        f"{name}: registers was {registers}, is 1",
        "new: not in the table",
        f"{gone}: in the table, but no kernel",
    ]


BREAKS = {
    "7 spills": {"spills": 7},
    "a stack of 8 bytes": {"stack": 8},
    "256 registers": {"registers": 256},
    "0 programs a processor": {"programs_per_processor": 0},
    "more than 232448": {"shared": 232449, "shared_reckoned": 300000},
    "99999 bytes of shared memory": {"shared": 99999, "shared_reckoned": 4},
    "tensor core instructions []": {"tensor_core": []},
    "instead of HGMMA.*": {"tensor_core": ["HMMA.16816.F32"]},
    "no 16-byte loads or stores: {'LDG 2'": {"accesses": {"LDG 2": 4, "STG 16": 1}},
    "no 16-byte loads or stores: {'LDG 16': 4}": {"accesses": {"LDG 16": 4}},
    "an operand is copied 4 bytes at a time": {"accesses": {"LDGSTS 16": 8, "LDGSTS 4": 32, "STG 16": 1}},
}


@pytest.mark.parametrize("message", BREAKS)
def test_rules_see_what_is_broken(table, message):
    name = "conv2d/wide/float16/sm_90"
    assert message in "\n".join(broken_rules(name, table["kernels"][name] | BREAKS[message]))


def test_rules_keep_float32_off_tensor_cores(table):
    name = "conv2d/wide/float32/sm_90"
    broken = broken_rules(name, table["kernels"][name] | {"tensor_core": ["HGMMA.64x64x8.F32.TF32"]})
    assert broken == ["float32 products on tensor cores: ['HGMMA.64x64x8.F32.TF32']"]
