"""Compiler and linker flags. None of them asks which processor this machine has."""

import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .environment import Compiler, Torch, stop


@dataclass(frozen=True)
class Isa:
    """One instruction set that csrc/cpu/isa/<name>.cpp and csrc/cpu/isa_bf16/<name>.cpp are compiled for.

    A set that differs from the one before it in bfloat16 alone has no file in csrc/cpu/isa.
    """

    name: str
    flags: tuple[str, ...]
    probe: str  # compiles only where the compiler knows the instruction set


_AVX512 = (
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mfma",
    "-mprefer-vector-width=512",
    "-Wno-maybe-uninitialized",  # GCC 12 warns about its own header's _mm512_undefined_ps
)

ISAS = (
    Isa("portable", (), "int main() { return 0; }\n"),
    Isa(
        "avx2",
        ("-mavx2", "-mfma", "-mf16c"),
        "#include <immintrin.h>\n__m256 f(__m256 a, __m128i b) { return a + _mm256_cvtph_ps(b); }\n",
    ),
    Isa(
        "avx512",
        _AVX512,
        "#include <immintrin.h>\n__m512 f(__m512 a) { return _mm512_fmadd_ps(a, a, a); }\n",
    ),
    Isa(
        "avx512_vnni",
        (*_AVX512, "-mavx512vnni"),
        "#include <immintrin.h>\n__m512i f(__m512i a) { return _mm512_dpwssd_epi32(a, a, a); }\n",
    ),
    Isa(
        "avx512_bf16",
        (*_AVX512, "-mavx512vnni", "-mavx512bf16"),
        "#include <immintrin.h>\n__m512 f(__m512 a, __m512bh b) { return _mm512_dpbf16_ps(a, b, b); }\n",
    ),
    Isa(  # tile instructions are written as assembly: the assembler must know them
        "amx",
        (*_AVX512, "-mavx512bf16"),
        '#include <immintrin.h>\nvoid f() { asm volatile("tdpbf16ps %tmm2, %tmm1, %tmm0"); }\n',
    ),
)

# Fused multiply-adds are written out in the kernels; contracted elsewhere, results would depend on flags.
COMMON = ("-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra")
# No exceptions, run-time types or torch in files of one instruction set: they would bring inline functions
# that the linker may then share with code for every processor.
ISA_COMMON = ("-O3", "-std=c++17", *COMMON, "-fno-exceptions", "-fno-rtti", "-fno-math-errno")


def isas_to_build(compiler: Compiler, folder: Path) -> list[Isa]:
    """The instruction sets with a source in `folder` that the compiler can compile for."""
    known = {isa.name for isa in ISAS}
    sources = {path.stem for path in folder.glob("*.cpp")}
    if sources - known:
        stop(f"{folder}: no compiler flags for {sorted(sources - known)} in build_support/flags.py")
    return [isa for isa in ISAS if isa.name in sources and compiler.accepts(list(isa.flags), isa.probe)]


def language_standard(compiler: Compiler, torch: Torch) -> str:
    if compiler.accepts(["-std=c++20"]):
        return "-std=c++20"
    if torch.release >= (2, 14):
        stop(f"torch {torch.version} needs a C++20 compiler, and {compiler.description} is none (set CXX)")
    return "-std=c++17"


@functools.cache
def precompiles(compiler: Compiler) -> bool:
    """Whether headers are compiled once for all files: by g++, unless $CNNFAST_PRECOMPILED is 0."""
    wanted = os.environ.get("CNNFAST_PRECOMPILED", "")
    if wanted not in ("", "0", "1"):
        stop(f"CNNFAST_PRECOMPILED={wanted}: say 0 (every file reads torch's headers) or 1")
    macros = "#if defined(__clang__) || !defined(__GNUC__)\n#error not g++\n#endif\n"
    return wanted != "0" and compiler.accepts([], macros + "int main() { return 0; }\n")


def sanitizers() -> tuple[list[str], str]:
    """Flags for $CNNFAST_SANITIZE (say "address,undefined") and the mark they leave on the build folder."""
    wanted = os.environ.get("CNNFAST_SANITIZE", "")
    if not wanted:
        return [], ""
    # vptr checks need run-time types, which the instruction set files are compiled without
    flags = [f"-fsanitize={wanted}", "-fno-sanitize=vptr", "-fno-omit-frame-pointer", "-g1"]
    return flags, "-" + wanted.replace(",", "-")


def torch_defines(torch: Torch) -> list[str]:
    return [f"-D_GLIBCXX_USE_CXX11_ABI={torch.cxx11_abi}"]


def isystem(folders: list[Path]) -> list[str]:
    return [flag for folder in folders for flag in ("-isystem", str(folder))]


def openmp_runtime(torch: Torch) -> list[str]:
    """Nothing where libtorch_cpu brings an OpenMP runtime: a second one would have threads of its own.

    The library's calls of the runtime then stay undefined and find the one that torch has loaded.
    """
    listing = subprocess.run(
        ["readelf", "-d", str(torch.lib / "libtorch_cpu.so")], capture_output=True, text=True, check=True
    ).stdout
    needed = [line for line in listing.splitlines() if "(NEEDED)" in line]
    brings_one = any(name in line for line in needed for name in ("libgomp", "libiomp5", "libomp"))
    return [] if brings_one else ["-lgomp"]


def torch_libraries(torch: Torch, cuda: bool) -> list[str]:
    names = ["c10", "torch_cpu", *(["c10_cuda", "torch_cuda"] if cuda else []), "torch"]
    # Libraries that only register operators have no symbol that we use: keep them all.
    return [f"-L{torch.lib}", "-Wl,--no-as-needed", *[f"-l{name}" for name in names]]


def library_rpaths(torch: Torch, editable: bool) -> list[str]:
    """Where the library looks for torch: beside cnnfast; from a source tree, also where torch lies now."""
    paths = ["$ORIGIN/../../torch/lib", *([str(torch.lib)] if editable else [])]
    return [f"-Wl,-rpath,{path}" for path in paths]
