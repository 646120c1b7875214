"""What the build finds around it: torch, the C++ compiler, processors and memory."""

import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


def stop(message: str) -> None:
    """Ends the build with one line in words instead of a traceback."""
    raise SystemExit(f"cnnfast: {message}")


@dataclass(frozen=True)
class Torch:
    """The torch that the extension is built for."""

    version: str
    cuda: str | None
    root: Path
    cxx11_abi: int

    @property
    def lib(self) -> Path:
        return self.root / "lib"

    @property
    def include_dirs(self) -> list[Path]:
        return [self.root / "include", self.root / "include/torch/csrc/api/include"]

    @property
    def release(self) -> tuple[int, int]:
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


def find_torch() -> Torch:
    try:
        import torch
    except ImportError as error:
        stop(
            f"torch cannot be imported ({error}). cnnfast is built for the torch of your environment: "
            "install torch there first, then run `pip install --no-build-isolation .`"
        )
    return Torch(
        version=str(torch.__version__),
        cuda=torch.version.cuda,
        root=Path(torch.__file__).resolve().parent,
        cxx11_abi=int(torch._C._GLIBCXX_USE_CXX11_ABI),
    )


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler with the interface of g++."""

    command: tuple[str, ...]
    description: str

    def accepts(self, flags: list[str], source: str = "int main() { return 0; }\n") -> bool:
        """Whether `source` compiles with `flags`. Says nothing about the processor of this machine."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "probe.cpp"
            path.write_text(source)
            command = [*self.command, "-Werror", *flags, "-c", str(path), "-o", str(path.with_suffix(".o"))]
            return subprocess.run(command, capture_output=True).returncode == 0


def find_compiler() -> Compiler:
    """$CXX, else g++, c++ or clang++ from PATH."""
    wanted = os.environ.get("CXX")
    candidates = [shlex.split(wanted)] if wanted else [["g++"], ["c++"], ["clang++"]]
    for command in candidates:
        if shutil.which(command[0]):
            result = subprocess.run([*command, "--version"], capture_output=True, text=True)
            if result.returncode == 0:
                return Compiler(tuple(command), result.stdout.splitlines()[0])
    if wanted:
        stop(f"the C++ compiler of the environment variable CXX, `{wanted}`, does not run")
    stop("no C++ compiler found (g++, c++, clang++): install one (Debian: apt-get install g++) or set CXX")


def available_memory() -> int:
    """Bytes that may still be used, by /proc/meminfo and by the control group's limit."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    memory = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        memory = min(memory, int(limit.read_text()) - int(used.read_text()))
    return memory


def number_of_jobs() -> int:
    """$CNNFAST_JOBS, else $MAX_JOBS, else one per processor and per 2 GiB: torch's headers are large."""
    for name in ("CNNFAST_JOBS", "MAX_JOBS"):
        value = os.environ.get(name)
        if value:
            if not value.isdigit() or int(value) == 0:
                stop(f"{name}={value} is not a positive number")
            return int(value)
    return max(1, min(len(os.sched_getaffinity(0)), available_memory() // (2 << 30)))
