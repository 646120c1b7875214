"""The setuptools command: plan, run ninja, put the results where Python looks for them."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools.command.build_ext import build_ext

from .cuda import find_cuda
from .environment import Compiler, find_compiler, find_torch, number_of_jobs, stop
from .flags import isas_to_build
from .ninja_file import LIBRARY, Plan, cuda_sources, write_ninja_file
from .triton_aot.settings import check_triton, wanted_archs

ROOT = Path(__file__).resolve().parent.parent


def make_plan() -> tuple[Plan, str]:
    """What will be built, and the reason where CUDA is not."""
    if not sys.platform.startswith("linux"):
        stop(f"builds on Linux alone so far, not on {sys.platform}")
    for name in ("ninja", "pybind11"):
        if importlib.util.find_spec(name) is None:
            stop(f"the Python package {name} is missing: pip install {name}")
    torch, compiler = find_torch(), find_compiler()
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        stop(f"{header} is missing: install Python's headers (Debian: apt-get install python3-dev)")
    cuda, reason = find_cuda(torch, [ROOT / path for path in cuda_sources(ROOT)])
    if os.environ.get("CNNFAST_SANITIZE"):
        cuda, reason = None, "CNNFAST_SANITIZE is set"
    isas = isas_to_build(compiler, ROOT / "csrc/cpu/isa_bf16")
    return Plan(ROOT, torch, compiler, cuda, isas, triton_archs(compiler)), reason


def triton_archs(compiler: Compiler) -> tuple[int, ...]:
    """Architectures of the Triton kernels that are compiled into the library."""
    archs = wanted_archs()
    if archs:
        check_triton()
        if not compiler.accepts([], "#include <zlib.h>\nint main() { return 0; }\n"):
            stop("CNNFAST_TRITON_AOT needs zlib's header (Debian: apt-get install zlib1g-dev)")
    return archs


def announce(plan: Plan, reason: str) -> None:
    device = f"CUDA for {', '.join(plan.cuda.archs)}" if plan.cuda else f"CPU only ({reason})"
    isas = ", ".join(isa.name for isa in plan.isas)
    if plan.triton_archs:
        device += f", Triton kernels for {', '.join(f'sm_{arch}' for arch in plan.triton_archs)}"
    print(f"cnnfast: building for torch {plan.torch.version}; {isas}; {device}", flush=True)


def run_ninja(plan: Plan, targets: list[str]) -> None:
    jobs = number_of_jobs()
    command = [sys.executable, "-m", "ninja", "-f", str(write_ninja_file(plan)), "-j", str(jobs), *targets]
    if subprocess.run(command, cwd=plan.root).returncode != 0:
        stop(f"compilation failed, see above (ran {jobs} at a time; if memory ran out, set MAX_JOBS=1)")


def build_facts(plan: Plan) -> dict:
    return {
        "torch": plan.torch.version,
        "cuda": plan.cuda is not None,
        "cuda_archs": list(plan.cuda.archs) if plan.cuda else [],
        "triton_archs": list(plan.triton_archs),
        "compiler": plan.compiler.description,
        "isas": [isa.name for isa in plan.isas],
    }


class BuildExt(build_ext):
    """Builds cnnfast/lib/libcnnfast.so and cnnfast/_info*.so and writes cnnfast/_build_info.json."""

    @property
    def in_source_tree(self) -> bool:
        return bool(self.inplace or self.editable_mode)

    @property
    def destination(self) -> Path:
        return (ROOT if self.in_source_tree else Path(self.build_lib)) / "cnnfast"

    def run(self) -> None:
        plan, reason = make_plan()
        announce(plan, reason)
        library, module = plan.artefacts(self.in_source_tree)
        run_ninja(plan, [str(library), str(module)])
        install(library, self.destination / "lib" / LIBRARY)
        install(module, self.destination / module.name)
        facts = json.dumps({"version": self.distribution.get_version(), **build_facts(plan)}, indent=2) + "\n"
        (self.destination / "_build_info.json").write_text(facts)

    def get_outputs(self) -> list[str]:
        if self.in_source_tree:
            return []
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        names = [f"lib/{LIBRARY}", f"_info{suffix}", "_build_info.json"]
        return [str(self.destination / name) for name in names]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def install(source: Path, target: Path) -> None:
    """Copies a library that changed. By renaming: a running process keeps the file that it has mapped."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.read_bytes() == source.read_bytes():
        return
    fresh = target.with_name(target.name + ".new")
    shutil.copy2(source, fresh)
    fresh.replace(target)
