"""The machine code of the CUDA kernel, for each architecture: registers, spills, 16-byte accesses."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent / "bn_act_kernels.cu"
CSRC = Path(__file__).resolve().parents[2] / "csrc"
KERNELS = 6  # three types, vector and single-element accesses
REGISTERS = 65536 // (256 * 4)  # four blocks of 256 threads share a processor's register file


def find_nvcc() -> str | None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            return shutil.which("nvcc", path=str(Path(os.environ[name]) / "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc in CUDA_HOME, PATH or /usr/local/cuda")


def compile_kernels(arch: str, output: Path, *flags: str) -> str:
    command = [
        find_nvcc(),
        "-O3",
        "-std=c++17",
        f"-arch={arch}",
        f"-I{CSRC}",
        *flags,
        str(SOURCE),
        "-o",
        str(output),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.parametrize("arch", ("sm_80", "sm_90"))
def test_bn_act_fits_into_registers(arch, tmp_path):
    report = compile_kernels(arch, tmp_path / "kernels.cubin", "-cubin", "-Xptxas", "-v")
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", report)]
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(registers) == len(spills) == KERNELS, report
    assert max(registers) <= REGISTERS, report
    assert all(pair == ("0", "0") for pair in spills), report


@pytest.mark.parametrize("arch", ("sm_80", "sm_90"))
def test_bn_act_moves_16_bytes_an_access(arch, tmp_path):
    compile_kernels(arch, tmp_path / "kernels.ptx", "-ptx")
    bodies = re.split(r"\.visible \.entry ", (tmp_path / "kernels.ptx").read_text())[1:]
    names = {re.match(r"\w+", body).group(): body for body in bodies}
    vectors = {name: body for name, body in names.items() if "Li1E" not in name}
    assert len(names) == KERNELS and len(vectors) == KERNELS // 2
    for name, body in vectors.items():
        # input and residual, then the output
        assert len(re.findall(r"ld\.global(?:\.nc)?\.v4\.\w32", body)) >= 2, name
        assert len(re.findall(r"st\.global\.v4\.\w32", body)) >= 1, name
