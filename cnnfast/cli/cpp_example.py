"""Builds and runs examples/cpp, for the demo and the tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cnnfast

PACKAGE = Path(cnnfast.__file__).resolve().parent
SOURCE = PACKAGE.parent / "examples" / "cpp"
BUILD = PACKAGE.parent / "build" / "cpp"


class ExampleError(RuntimeError):
    """The example cannot be built, or its program failed."""


def why_not() -> str:
    """Why the example cannot be built here, in words; empty where it can."""
    if not SOURCE.is_dir():
        return f"its source is not installed ({SOURCE} does not exist): it is part of a clone"
    if _cmake() is None:
        return "cmake was not found (pip install cmake)"
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(compiler.split()[0]) for compiler in compilers):
        return f"no C++ compiler was found ({', '.join(compilers)})"
    return ""


def build(folder: Path = BUILD) -> Path:
    """Configure and build `classify` for the torch of this process, where it is not up to date; its path."""
    cmake = _cmake()
    if cmake is None:
        raise ExampleError(why_not())
    options = [f"-DCMAKE_PREFIX_PATH={PACKAGE / 'cmake'}", f"-DCNNFAST_PYTHON={sys.executable}"]
    for command in ([cmake, "-S", str(SOURCE), "-B", str(folder), *options], [cmake, "--build", str(folder)]):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            output = f"{result.stdout}{result.stderr}".strip()
            raise ExampleError(f"`{' '.join(command)}` failed (a stale {folder} may be deleted):\n{output}")
    return folder / "classify"


def classify(program: Path, network: Path, images: Path, labels: Path, classes: Path, batch: int) -> str:
    """Run `classify`, which writes `classes`; the line that it prints.

    Args:
        network: a TorchScript file, or an AOTInductor package (.pt2). images, labels: plain IDX files.
        classes: one byte per image.
    """
    command = [str(part) for part in (program, network, images, labels, classes, batch)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise ExampleError(f"`{' '.join(command)}` ended with {result.returncode}: {result.stderr.strip()}")
    return result.stdout.strip()


def _cmake() -> str | None:
    beside = Path(sys.executable).parent / "cmake"  # of an environment that is not activated
    return shutil.which("cmake") or (str(beside) if beside.is_file() else None)
