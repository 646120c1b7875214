"""All that can be shown of the Triton kernels without a GPU; `pytest tests/triton_kernels/gpu_proof.py`.

Every sweep in the interpreter, every kernel x class of shapes x type x architecture through the compiler.
"""

from pathlib import Path

import pytest
from interpreter import FILES, run_interpreted
from resources import check_report, compile_kernels

# Compiled kernels are kept here under the hash of their source, options and compiler.
CACHE = Path(__file__).resolve().parents[2] / "build" / "triton-proof"


@pytest.mark.parametrize("name", FILES)
def test_everything_in_the_interpreter(name):
    run_interpreted(name, everything=True)


def test_every_kernel_compiled(tmp_path):
    check_report(compile_kernels(tmp_path / "facts.json", True, CACHE, timeout=1500), everything=True)
