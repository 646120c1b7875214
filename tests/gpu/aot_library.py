"""A copy of the operator library with a few Triton kernels compiled into it, and the stub of a CUDA driver.

The library's own objects are linked once more, with the two files that hold the kernels compiled anew: the
whole list takes minutes.
"""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch

from cnnfast import _ext

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
LIBRARY = ROOT / "cnnfast" / "lib" / "libcnnfast.so"
HOLDERS = ("csrc/gpu/triton/table.cpp", "csrc/gpu/triton/unpack.cpp")
# Type, class, tile and epilogue of the kernels.
MATCH = (
    "^(conv2d-(float16-aligned(-pointwise)?|ieee-any-across)-64x64-(relu|prologue|statistics)"
    "|(input|weight)_grad-(float16-aligned(-pointwise|-strided)?|ieee-any(-strided)?-across)-64x64"
    "|sum_parts-float(16|32)|combine)"
)
TORCH = Path(torch.__file__).parent


class Worker:
    """worker.py with a library and a stub, started when it is first asked."""

    def __init__(self, library: Path, stub: Path, environment: dict[str, str]) -> None:
        command = [sys.executable, str(HERE / "worker.py"), str(library), str(stub)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def run(self, name: str, *arguments: str, **environment: str) -> str:
        """What a request of worker.py prints, in a process with these variables. `stderr` is its errors."""
        request = {"name": name, "arguments": arguments, "environment": environment}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the worker has ended with {self.process.wait()}"
        answer = json.loads(line)
        self.stderr = answer["stderr"]
        assert answer["status"] == 0, f"status {answer['status']}\n{answer['stderr'][-6000:]}"
        return answer["stdout"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


@dataclass
class Built:
    library: Path
    stub: Path
    names: Path  # what the stub is told of the kernels
    manifest: list[dict]
    blob: bytes

    @cached_property
    def worker(self) -> Worker:
        return Worker(self.library, self.stub, self.environment())

    def close(self) -> None:
        if "worker" in self.__dict__:
            self.worker.close()

    def environment(self, **more: str) -> dict[str, str]:
        """For a process that takes the stub for a GPU."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("CNNFAST_", "STUB_"))}
        return clean | {"CNNFAST_CUDA_DRIVER": str(self.stub), "STUB_KERNELS": str(self.names)} | more


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def source_of(built: Path, base: Path) -> Path:
    return ROOT / built.relative_to(base).with_suffix("")


def objects() -> list[Path]:
    """Of the library that is in use, but for HOLDERS and kernels that need a GPU. A source that is gone may
    have left its object behind.
    """
    for folder in sorted((ROOT / "build").glob("*/editable/lib/libcnnfast.so")):
        if folder.read_bytes() == LIBRARY.read_bytes():
            base = folder.parents[2] / "objects"
            found = sorted(path for path in base.rglob("csrc/**/*.o") if source_of(path, base).exists())
            apart = ("csrc/binding/", "csrc/cuda/", *HOLDERS)
            return [path for path in found if not any(name in path.as_posix() for name in apart)]
    pytest.skip("the library in use was not built here: its objects are missing")


def build(
    folder: Path, archs: str = "80", match: str = MATCH, jobs: int = 1, rich: str = "", on_host: bool = False
) -> Built:
    """Compiles kernels, links library and stub.

    rich: a variant whose launches get all that there is. on_host: with csrc/cuda, whose kernels then run
    under emulation; else with fake_kernels.cpp, which stands for them when it is asked.
    """
    pytest.importorskip("triton", reason="Triton is not installed (Linux on x86-64 only)")
    if not _ext.AVAILABLE:
        pytest.skip(f"the extension is not there: {_ext.REASON}")
    others = objects()
    generated = folder / "triton"
    command = [sys.executable, "-W", "ignore", "-m", "build_support.triton_aot", str(generated)]
    # Machine code is kept under the hash of its source, options and compiler.
    environment = os.environ | {"TRITON_CACHE_DIR": str(ROOT / "build" / "triton-proof")}
    options = ["--archs", archs, "--match", match, "--jobs", str(jobs)]
    run([*command, *options], cwd=ROOT, env=environment)
    if rich:
        enrich(generated, rich)
    flags = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", f"-I{ROOT / 'csrc'}", f"-I{generated}"]
    own = []
    for source in HOLDERS:
        own.append(folder / f"{Path(source).stem}.o")
        words = [*compiler(), *flags, "-DCNNFAST_TRITON_AOT=1", "-c", str(ROOT / source), "-o", str(own[-1])]
        run(words)
    own += host_kernels(folder) if on_host else [compile_object(folder, HERE / "fake_kernels.cpp", "-O0")]
    library = folder / "libcnnfast.so"
    torch_libraries = [f"-L{TORCH / 'lib'}", "-Wl,--no-as-needed", "-lc10", "-ltorch_cpu", "-ltorch"]
    links = ["-Wl,-soname,libcnnfast.so", *torch_libraries, f"-Wl,-rpath,{TORCH / 'lib'}", "-lz"]
    run([*compiler(), "-shared", "-o", str(library), *map(str, [*others, *own]), *links])
    manifest = json.loads((generated / "triton_manifest.json").read_text())
    blob = (generated / "triton_kernels.bin").read_bytes()
    names = folder / "kernels.txt"
    names.write_text("".join(known_lines(manifest)))
    return Built(library, build_stub(folder), names, manifest, blob)


def compile_object(folder: Path, source: Path, *flags: str) -> Path:
    target = folder / f"{source.name}.o"
    includes = [TORCH / "include", TORCH / "include/torch/csrc/api/include"]
    words = ["-std=c++20", "-fPIC", "-fvisibility=hidden", *flags, f"-I{ROOT / 'csrc'}"]
    words += [word for path in includes for word in ("-isystem", str(path))]
    run([*compiler(), *words, "-x", "c++", "-c", str(source), "-o", str(target)])
    return target


def host_kernels(folder: Path) -> list[Path]:
    """csrc/cuda compiled for the host: kernels under emulation, CUDA's and torch's headers by stand-ins."""
    host = ROOT / "tests/cuda/host"
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.c*[pu]")), host / "emulation.cpp", host / "library.cpp"]
    flags = ("-O1", "-ffp-contract=off", f"-I{host / 'torch'}", f"-I{host}")
    return [compile_object(folder, source, *flags) for source in sources]


def enrich(generated: Path, name: str) -> None:
    """Gives a kernel's machine code a cluster, all launch attributes and scratch buffers: ours have none."""
    manifest = json.loads((generated / "triton_manifest.json").read_text())
    (variant,) = (variant for variant in manifest if variant["name"] == name)
    (image,) = (image for image in variant["images"] if not image["ptx"])
    table = generated / "triton_table.inc"
    text = table.read_text()
    head = f"{{{image['arch']}, false, false, {image['offset']}, {image['packed']}, {image['unpacked']}, "
    head += f"{image['shared_bytes']}, {image['warps']}, "
    assert text.count(f"{head}1, false, false, 0, 1, 0, 1}}") == 1
    table.write_text(
        text.replace(f"{head}1, false, false, 0, 1, 0, 1}}", f"{head}2, true, true, 24, 64, 8, 256}}")
    )
    image |= {"ctas": 2, "cooperative": True, "dependent": True}
    image |= {
        "global_scratch": 24,
        "global_scratch_align": 64,
        "profile_scratch": 8,
        "profile_scratch_align": 256,
    }
    (generated / "triton_manifest.json").write_text(json.dumps(manifest))


def build_stub(folder: Path) -> Path:
    """The stub under the driver's own name, for whoever loads it first."""
    stub = folder / "libcuda.so.1"
    flags = ["-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wno-unused-parameter"]
    links = ["-isystem", str(TORCH / "include"), "-Wl,-soname,libcuda.so.1"]
    run([*compiler(), *flags, str(HERE / "stub_driver.cpp"), "-o", str(stub), *links])
    return stub


def known_lines(manifest: list[dict]):
    """Names of parameters in the order of the source, then the scratch buffers; constants apart."""
    for variant in manifest:
        passed = [name for name, kind in variant["types"].items() if kind != "constexpr"]
        names = ",".join([*passed, "global_scratch", "profile_scratch"])
        kernel = variant["kernel"]
        image_of = {"sum_parts": "sum_ptr", "combine": "joined_ptr", "conv2d_input_grad": "dx_ptr"}
        kind = variant["types"][image_of.get(kernel, "x_ptr")]
        dtype = {"*fp16": "float16", "*bf16": "bfloat16", "*fp32": "float32"}[kind]
        values = {name: int(v) if isinstance(v, bool) else v for name, v in variant["constants"].items()}
        constants = ",".join(f"{name}={value}" for name, value in values.items())
        for image in variant["images"]:
            yield f"{image['fnv']} {kernel} {dtype} {constants} {names}\n"


def run(command: list[str], **options) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=1500, **options)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-6000:]}"
    return result.stdout
