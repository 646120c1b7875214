"""Every Triton kernel in the interpreter, against float64: the short part. All of it: gpu_proof.py."""

import pytest
from interpreter import FILES, run_interpreted


@pytest.mark.parametrize("name", FILES)
def test_in_the_interpreter(name):
    pytest.importorskip("triton", reason="Triton is not installed (Linux on x86-64 only)")
    run_interpreted(name, everything=False)
