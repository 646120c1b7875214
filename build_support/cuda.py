"""Whether CUDA sources are built, and how. Without a usable nvcc the package is built for the CPU alone."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .environment import Torch, stop

DEFAULT_ARCHS = "8.0;9.0+PTX"

# As torch compiles its own: its half types have their own operators and conversions.
NVCC_FLAGS = (
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "--expt-relaxed-constexpr",
)


@dataclass(frozen=True)
class Cuda:
    """A CUDA compiler that fits torch."""

    nvcc: str
    version: str
    archs: tuple[str, ...]
    include_dirs: tuple[Path, ...]

    @property
    def gencode(self) -> list[str]:
        return [flag for arch in self.archs for flag in gencode_of(arch)]


def gencode_of(arch: str) -> list[str]:
    """nvcc's flag for one entry of TORCH_CUDA_ARCH_LIST, such as 8.0, 9.0a or 9.0+PTX."""
    match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
    if not match:
        stop(f"TORCH_CUDA_ARCH_LIST: `{arch}` is not of the form 8.0, 9.0a or 9.0+PTX")
    number = "".join(match.group(1, 2, 3))
    code = f"[sm_{number},compute_{number}]" if match.group(4) else f"sm_{number}"
    return ["-gencode", f"arch=compute_{number},code={code}"]


def find_nvcc() -> str | None:
    """nvcc of $CUDA_HOME or $CUDA_PATH, else of PATH, else of /usr/local/cuda."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            return shutil.which("nvcc", path=str(Path(os.environ[name]) / "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def nvcc_version(nvcc: str) -> str:
    result = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    match = re.search(r"release (\d+\.\d+)", result.stdout)
    if not match:
        stop(f"`{nvcc} --version` says no release: set CUDA_HOME, or CNNFAST_CUDA=0 to build without CUDA")
    return match.group(1)


def wheel_include_dirs(torch: Torch, major: str) -> list[Path]:
    """Headers (cuSPARSE, cuBLAS, ...) that lie in the nvidia wheels beside torch; a toolkit may lack them."""
    nvidia = torch.root.parent / "nvidia"
    folders = sorted(nvidia.glob("*/include"))
    return sorted(folders, key=lambda folder: folder.parent.name != f"cu{major}")


def find_cuda(torch: Torch, sources: list[Path]) -> tuple[Cuda | None, str]:
    """The CUDA compiler to build with, or None and the reason. $CNNFAST_CUDA=0 or 1 forces."""
    wanted = os.environ.get("CNNFAST_CUDA", "")
    if wanted not in ("", "0", "1"):
        stop(f"CNNFAST_CUDA={wanted}: say 0 (CPU only) or 1 (with CUDA), or leave it unset")
    if wanted == "0":
        return None, "CNNFAST_CUDA=0"
    cuda, reason = _search(torch, sources)
    if cuda is None and wanted == "1":
        stop(f"CNNFAST_CUDA=1, but CUDA sources cannot be built: {reason}")
    return cuda, reason


def _search(torch: Torch, sources: list[Path]) -> tuple[Cuda | None, str]:
    if not sources:
        return None, "there are no CUDA sources"
    if torch.cuda is None:
        return None, f"torch {torch.version} is built without CUDA"
    nvcc = find_nvcc()
    if nvcc is None:
        return None, "no nvcc in CUDA_HOME, PATH or /usr/local/cuda"
    version = nvcc_version(nvcc)
    if version.split(".")[0] != torch.cuda.split(".")[0]:
        return None, f"nvcc is of CUDA {version}, and torch {torch.version} of CUDA {torch.cuda}"
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";") or DEFAULT_ARCHS
    entries = tuple(arch for arch in archs.split(";") if arch)
    includes = tuple(wheel_include_dirs(torch, version.split(".")[0]))
    return Cuda(nvcc, version, entries, includes), ""
