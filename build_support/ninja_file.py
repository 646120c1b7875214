"""The ninja file: which source is compiled with which flags, and what is linked from it."""

import shlex
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from . import flags
from .cuda import NVCC_FLAGS, Cuda
from .environment import Compiler, Torch, number_of_jobs

LIBRARY = "libcnnfast.so"
DISPATCH = Path("csrc/cpu/dispatch.cpp")  # the one file that knows which instruction sets are built
# The two that know whether Triton kernels are built in.
TRITON_TABLE = (Path("csrc/gpu/triton/table.cpp"), Path("csrc/gpu/triton/unpack.cpp"))


# Parsing these is most of a file's time: g++ does it once for all files that include one. Files still include
# what they use, as other compilers read them without this.
PRECOMPILED = ("ATen/Functions.h", "torch/library.h")


@dataclass(frozen=True)
class Plan:
    """All that decides about the ninja file."""

    root: Path  # of the source tree; ninja runs there
    torch: Torch
    compiler: Compiler
    cuda: Cuda | None
    isas: list[flags.Isa]
    triton_archs: tuple[int, ...] = ()  # none: no Triton kernels

    @property
    def precompiled(self) -> Path | None:
        """The header that holds PRECOMPILED, where the compiler is one that precompiles it."""
        return self.folder / "precompiled.h" if flags.precompiles(self.compiler) else None

    @property
    def folder(self) -> Path:
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        device = f"cu{self.cuda.version.replace('.', '')}" if self.cuda else "cpu"
        mark = flags.sanitizers()[1]
        if self.triton_archs:
            device += "-triton" + "-".join(map(str, self.triton_archs))
        return self.root / "build" / f"{python}-torch{self.torch.version.split('+')[0]}-{device}{mark}"

    def artefacts(self, editable: bool) -> tuple[Path, Path]:
        """The library and the introspection module, as ninja leaves them."""
        folder = self.folder / ("editable" if editable else "wheel")
        return folder / "lib" / LIBRARY, folder / f"_info{sysconfig.get_config_var('EXT_SUFFIX')}"


def sources(root: Path, pattern: str) -> list[Path]:
    return sorted(path.relative_to(root) for path in root.glob(pattern))


def library_sources(root: Path) -> list[Path]:
    apart = ("csrc/binding/", "csrc/cpu/isa/", "csrc/cpu/isa_bf16/", "csrc/cuda/")
    return [path for path in sources(root, "csrc/**/*.cpp") if not path.as_posix().startswith(apart)]


def cuda_sources(root: Path) -> list[Path]:
    return sources(root, "csrc/cuda/**/*.cu") + sources(root, "csrc/cuda/**/*.cpp")


def shell(words: list[str]) -> str:
    """Words as one ninja value that the shell takes apart again into the same words."""
    return " ".join(shlex.quote(word) for word in words).replace("$", "$$")


def cxx_flags(plan: Plan, path: Path) -> list[str]:
    defines = ["-DCNNFAST_WITH_CUDA=1"] if plan.cuda else []
    if path == DISPATCH:
        defines += [f"-DCNNFAST_ISA_{isa.name.upper()}=1" for isa in plan.isas]
    if path in TRITON_TABLE and plan.triton_archs:
        defines += ["-DCNNFAST_TRITON_AOT=1", f"-I{plan.folder / 'triton'}"]
    return [
        *("-O2", flags.language_standard(plan.compiler, plan.torch), *flags.COMMON, "-fopenmp"),
        *(*flags.torch_defines(plan.torch), *defines, "-Icsrc", *flags.isystem(plan.torch.include_dirs)),
        *flags.sanitizers()[0],
    ]


def takes_precompiled(plan: Plan, path: Path) -> bool:
    text = (plan.root / path).read_text()
    return plan.precompiled is not None and any(f"#include <{name}>" in text for name in PRECOMPILED)


def isa_flags(plan: Plan, isa: flags.Isa) -> list[str]:
    return [*flags.ISA_COMMON, *isa.flags, "-Icsrc", *flags.sanitizers()[0]]


def binding_flags(plan: Plan) -> list[str]:
    """The introspection module includes no torch header."""
    import pybind11

    return [
        *("-O2", flags.language_standard(plan.compiler, plan.torch), *flags.COMMON, "-fopenmp", "-Icsrc"),
        *(["-DCNNFAST_WITH_CUDA=1"] if plan.cuda else []),
        *flags.isystem([Path(pybind11.get_include()), Path(sysconfig.get_path("include"))]),
        *flags.sanitizers()[0],
    ]


def nvcc_flags(plan: Plan) -> list[str]:
    host = ["-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fopenmp"]
    return [
        *("-O3", flags.language_standard(plan.compiler, plan.torch), *NVCC_FLAGS, *plan.cuda.gencode),
        *("-ccbin", plan.compiler.command[-1], "-Xcompiler", ",".join(host)),
        *(*flags.torch_defines(plan.torch), "-DCNNFAST_WITH_CUDA=1", "-Icsrc"),
        *flags.isystem([*plan.torch.include_dirs, *plan.cuda.include_dirs]),
    ]


class NinjaFile:
    def __init__(self, plan: Plan, writer) -> None:
        self.plan = plan
        self.writer = writer
        self.toolchain = str(plan.folder / "toolchain.txt")

    def write(self) -> None:
        self.writer.variable("builddir", self.plan.folder)  # for ninja's own log
        self.rules()
        table = self.triton_table()
        headers = self.precompiled_headers()
        objects = []
        for path in library_sources(self.plan.root):
            words, generated = cxx_flags(self.plan, path), table if path in TRITON_TABLE else []
            if takes_precompiled(self.plan, path):
                words = [*words, "-Winvalid-pch", "-include", str(self.plan.precompiled)]
                generated = [*generated, *headers]
            objects.append(self.compile("cxx", path, words, generated))
        for isa in self.plan.isas:
            for path in sources(self.plan.root, f"csrc/cpu/isa*/{isa.name}.cpp"):
                objects.append(self.compile("cxx", path, isa_flags(self.plan, isa)))
        objects += self.cuda_objects()
        binding = binding_flags(self.plan)
        info = [self.compile("cxx", path, binding) for path in sources(self.plan.root, "csrc/binding/*.cpp")]
        for editable in (True, False):
            self.link(objects, info, editable)

    def rules(self) -> None:
        compiler = shell(list(self.plan.compiler.command))
        self.writer.rule(
            "cxx", f"{compiler} -MMD -MF $out.d $flags -c $in -o $out", "c++ $in", "$out.d", deps="gcc"
        )
        if self.plan.precompiled:
            command = f"{compiler} -MMD -MF $out.d $flags -x c++-header -c $in -o $out"
            self.writer.rule("precompile", command, "c++ $in", "$out.d", deps="gcc")
        if self.plan.cuda:
            nvcc = shell([self.plan.cuda.nvcc])
            self.writer.rule(
                "nvcc", f"{nvcc} -MMD -MF $out.d $flags -c $in -o $out", "nvcc $in", "$out.d", deps="gcc"
            )
        self.writer.rule("link", f"{compiler} -shared -o $out $in $flags", "link $out")

    def precompiled_headers(self) -> list[str]:
        header = self.plan.precompiled
        if header is None:
            return []
        output = f"{header}.gch"
        words = cxx_flags(self.plan, header)
        needs = [self.toolchain]
        self.writer.build(output, "precompile", str(header), needs, variables={"flags": shell(words)})
        return [output]

    def cuda_objects(self) -> list[str]:
        if not self.plan.cuda:
            return []
        words = nvcc_flags(self.plan)
        objects = [self.compile("nvcc", path, words) for path in cuda_sources(self.plan.root)]
        self.writer.build("cuda-objects", "phony", objects)
        return objects

    def triton_table(self) -> list[str]:
        """The kernels of build_support/triton_aot; compiled again when they or their list change."""
        if not self.plan.triton_archs:
            return []
        folder = self.plan.folder / "triton"
        archs = ",".join(map(str, self.plan.triton_archs))
        command = [sys.executable, "-W", "ignore", "-m", "build_support.triton_aot", str(folder)]
        words = shell([*command, "--archs", archs, "--jobs", str(number_of_jobs())])
        self.writer.rule("triton", words, "triton kernels for sm_" + archs, pool="console")
        files = [str(folder / name) for name in ("triton_table.inc", "triton_kernels.bin")]
        inputs = sources(self.plan.root, "cnnfast/triton/*.py")
        inputs += sources(self.plan.root, "build_support/triton_aot/*.py")
        self.writer.build(files, "triton", list(map(str, inputs)), self.toolchain)
        return files

    def compile(self, rule: str, path: Path, words: list[str], generated: list[str] = ()) -> str:
        output = str(self.plan.folder / "objects" / path) + ".o"
        needs = [self.toolchain, *generated]
        self.writer.build(output, rule, str(path), needs, variables={"flags": shell(words)})
        return output

    def link(self, objects: list[str], info: list[str], editable: bool) -> None:
        library, module = self.plan.artefacts(editable)
        torch, sanitize = self.plan.torch, flags.sanitizers()[0]
        library_flags = [
            *(f"-Wl,-soname,{LIBRARY}", *flags.torch_libraries(torch, self.plan.cuda is not None)),
            *(*flags.library_rpaths(torch, editable), *flags.openmp_runtime(torch), *sanitize),
            *(("-lz",) if self.plan.triton_archs else ()),
        ]
        self.writer.build(str(library), "link", objects, variables={"flags": shell(library_flags)})
        module_flags = ["-Wl,--no-as-needed", str(library), "-Wl,-rpath,$ORIGIN/lib", *sanitize]
        self.writer.build(str(module), "link", info, str(library), variables={"flags": shell(module_flags)})


def write_ninja_file(plan: Plan) -> Path:
    """Writes build.ninja and the note of tools and versions whose change means compiling everything anew."""
    from ninja.ninja_syntax import Writer

    plan.folder.mkdir(parents=True, exist_ok=True)
    nvcc = f"nvcc {plan.cuda.version}" if plan.cuda else "no nvcc"
    note = "\n".join([plan.compiler.description, f"torch {plan.torch.version}", nvcc, ""])
    toolchain = plan.folder / "toolchain.txt"
    if not toolchain.exists() or toolchain.read_text() != note:
        toolchain.write_text(note)
    if plan.precompiled:
        text = "".join(f"#include <{name}>\n" for name in PRECOMPILED)
        if not plan.precompiled.exists() or plan.precompiled.read_text() != text:
            plan.precompiled.write_text(text)
    path = plan.folder / "build.ninja"
    with path.open("w") as stream:
        NinjaFile(plan, Writer(stream, width=110)).write()
    return path
