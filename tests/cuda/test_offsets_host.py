"""Element offsets above 32 bits, on the host."""

import subprocess

import pytest
from host_program import environment


@pytest.mark.gpu_proof
def test_element_offsets_above_32_bits(host_programs):
    program = host_programs("offsets_main")
    result = subprocess.run([program], capture_output=True, text=True, env=environment())
    if result.returncode == 2:
        pytest.skip("12 GiB of address space cannot be reserved: " + result.stderr.strip())
    assert result.returncode == 0, result.stderr
