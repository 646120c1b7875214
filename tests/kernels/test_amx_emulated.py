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
import ctypes, sys, pytest
from cnnfast import _ext
assert _ext.active_isa() == "amx", _ext.active_isa()
failed = pytest.main(["-q", "-x", "-p", "no:faulthandler", "-p", "no:cacheprovider", *sys.argv[1:]])
products = ctypes.CDLL(None).amx_emulator_products
products.restype = ctypes.c_long
print("products", products())
sys.exit(failed or products() < 1000)
"""


def reason_not_to_run() -> str:
    if not shutil.which("gcc"):
        return "gcc is not installed"
    if not _ext.AVAILABLE or "amx" not in _ext.build_info()["isas"]:
        return "no AMX kernels in this build"
    from cnnfast import _info

    if "amx" in _info.available_isas():
        return "this CPU has AMX: other tests run its kernels"
    return "" if "avx512" in _info.available_isas() else "needs AVX-512"


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


@pytest.mark.parametrize(
    "tests",
    [
        ("tests/ops/test_widened.py",),
        ("tests/freeze/test_bfloat16.py", "-k", "not other_instruction_sets and not on_every_network"),
    ],
    ids=["operators", "frozen"],
)
def test_library_computes_with_tiles(emulator, tests):
    """The tests of bfloat16 once more, products by tiles."""
    environment = {**os.environ, "LD_PRELOAD": str(emulator), "CNNFAST_EMULATED_ISA": "amx"}
    environment.pop("CNNFAST_CPU_ISA", None)
    command = [sys.executable, "-c", RUN, *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
