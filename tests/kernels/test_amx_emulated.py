"""The library's own AMX code on CPUs without AMX: an emulator computes the tile instructions they refuse."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cnnfast import _ext

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# AVX512-BF16 is not emulated; some CPUs have it though a hypervisor does not announce it.
PROBE = """
#include <immintrin.h>
__attribute__((target("avx512f,avx512bf16"))) int main(void) {
  volatile float one = 1;
  const __m512 sum = _mm512_dpbf16_ps(_mm512_set1_ps(one), (__m512bh)_mm512_setzero_si512(),
                                      (__m512bh)_mm512_setzero_si512());
  return !(_mm512_reduce_max_ps(sum) == 1);
}
"""

RUN = """
import ctypes, os, sys, pytest
from cnnfast import _ext
isa = os.environ["CNNFAST_EMULATED_ISA"]
assert _ext.active_isa() == isa, _ext.active_isa()
failed = pytest.main(["-q", "-x", "-p", "no:faulthandler", "-p", "no:cacheprovider", *sys.argv[1:]])
products = ctypes.CDLL(None).amx_emulator_products
products.restype = ctypes.c_long
print("products", products())
sys.exit(failed or (isa == "amx" and products() < 1000))
"""


def runnable() -> list[str]:
    if not _ext.AVAILABLE:
        return []
    from cnnfast import _info

    return _info.available_isas()


def reason_not_to_run() -> str:
    if not shutil.which("gcc"):
        return "gcc is not installed"
    if not _ext.AVAILABLE or "amx" not in _ext.build_info()["isas"]:
        return "no AMX kernels in this build"
    if "amx" in runnable():
        return "this CPU has AMX: other tests run its kernels"
    return "" if "avx512" in runnable() else "needs AVX-512"


pytestmark = pytest.mark.skipif(bool(reason_not_to_run()), reason=reason_not_to_run() or "-")


def compiled(source: Path, to: Path, *options: str) -> Path:
    command = ["gcc", "-O3", "-Wall", "-Wextra", "-Werror", *options, str(source), "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return to


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("amx")
    source = folder / "probe.c"
    source.write_text(PROBE)
    if subprocess.run([str(compiled(source, folder / "probe"))]).returncode != 0:
        pytest.skip("this CPU does not execute AVX512-BF16")
    return compiled(HERE / "amx_emulator.c", folder / "amx_emulator.so", "-mavx2", "-fPIC", "-shared")


def run_tests(tests: tuple[str, ...], isa: str, **variables: str) -> None:
    environment = {**os.environ, **variables, "CNNFAST_EMULATED_ISA": isa}
    environment.pop("CNNFAST_CPU_ISA", None)
    command = [sys.executable, "-c", RUN, *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


OPERATORS = ("tests/ops/test_widened.py",)
CHAINS = ("tests/ops/test_paired_chains.py", "-k", "relu and master or one_pass")
FROZEN = (
    "tests/freeze/test_bfloat16.py",
    "tests/freeze/test_depth_first.py",
    "tests/freeze/test_short_pairs.py",
    "-k",
    "not other_instruction_sets and not on_every_network and not whole_images and not calls_at_once",
)


@pytest.mark.parametrize("tests", [OPERATORS, CHAINS, FROZEN], ids=["operators", "chains", "frozen"])
def test_library_computes_with_tiles(emulator, tests):
    """The tests of bfloat16 once more, products by tiles."""
    run_tests(tests, "amx", LD_PRELOAD=str(emulator))


@pytest.mark.skipif("avx512_bf16" in runnable(), reason="not emulated here")
def test_operators_compute_with_pairs_in_vectors(emulator):
    run_tests(OPERATORS, "avx512_bf16", LD_PRELOAD=str(emulator))
