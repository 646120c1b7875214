"""The bfloat16 kernels in a program of their own: tiles are emulated, memory is watched."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    *("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"),
    "-Wno-array-bounds",  # GCC 12 takes the emulated tiles' pointers for out of range
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-static-libasan"),
)


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
def test_conv16_kernels_against_double(tmp_path):
    """AMX, AVX512-BF16 (both emulated) and widened values, on drawn shapes."""
    program, source = tmp_path / "check", ROOT / "tests/kernels/conv16_check.cpp"
    built = subprocess.run(
        ["g++", *FLAGS, f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program), "250"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    cases, straight, in_place, stored, wrong = map(int, re.findall(r"\d+", done.stdout.splitlines()[-1]))
    assert (cases, wrong) == (250, 0) and straight > 30 and in_place > 20 and stored > 50


def tile_loop(listing: str, function: str) -> list[str]:
    """Tile instructions of a function from its first zero to its first store, without the loads of sums."""
    body = re.split(rf"<\S*{function}\S*>:", listing, maxsplit=1)[1].split("\n\n", 1)[0]
    found = re.findall(r"(tilezero|tileloadd|tdpbf16ps|tilestored)\s+(\S+)", body)
    first = next(i for i, (name, _) in enumerate(found) if name == "tilestored")
    loop = [f"{name} {','.join(re.findall(r'tmm[0-7]', operands))}" for name, operands in found[:first]]
    sums = {line.split(",")[-1].removeprefix("tdpbf16ps ") for line in loop if line.startswith("tdp")}
    return [line for line in loop if line.removeprefix("tileloadd ") not in sums]


@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump is not installed")
@pytest.mark.skipif(
    not list(ROOT.glob("build/cp*/objects/csrc/cpu/isa_bf16/amx.cpp.o")), reason="no AMX object"
)
def test_tile_loops_are_as_written():
    """A compiler that mixes up tile registers computes nonsense that no machine without tiles shows."""
    wanted = {
        "tile_passILi2ELi2E": [
            *(f"tilezero tmm{i}" for i in range(4)),
            *("tileloadd tmm6", "tileloadd tmm4", "tdpbf16ps tmm6,tmm4,tmm0"),
            *("tileloadd tmm7", "tdpbf16ps tmm7,tmm4,tmm1"),
            *("tileloadd tmm5", "tdpbf16ps tmm6,tmm5,tmm2", "tdpbf16ps tmm7,tmm5,tmm3"),
        ],
        "tile_passILi3ELi1E": [
            *(f"tilezero tmm{i}" for i in range(3)),
            *("tileloadd tmm6", "tileloadd tmm3", "tdpbf16ps tmm6,tmm3,tmm0"),
            *("tileloadd tmm4", "tdpbf16ps tmm6,tmm4,tmm1"),
            *("tileloadd tmm5", "tdpbf16ps tmm6,tmm5,tmm2"),
        ],
    }
    for path in ROOT.glob("build/cp*/objects/csrc/cpu/isa_bf16/amx.cpp.o"):
        command = ["objdump", "-d", "--no-show-raw-insn", str(path)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for function, instructions in wanted.items():
            assert tile_loop(listing, function) == instructions
