"""One variant for one architecture: machine code, and what the launcher has to know about it."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget

from .settings import PTX_ARCH
from .variants import Variant, variants


@dataclass(frozen=True)
class Image:
    """Fields as in csrc/gpu/triton/table.h."""

    arch: int
    arch_specific: bool
    ptx: bool
    code: bytes
    shared_bytes: int
    warps: int
    ctas: int
    cooperative: bool
    dependent: bool
    global_scratch: int
    global_scratch_align: int
    profile_scratch: int
    profile_scratch_align: int


def compile_variant(variant: Variant, arch: int) -> tuple[str, list[Image]]:
    """The entry's name and the images: machine code, and for PTX_ARCH its PTX as well."""
    kernel = _compile_without_stack(variant, arch)
    facts = kernel.metadata
    target = next(line.split()[1] for line in kernel.asm["ptx"].splitlines() if line.startswith(".target"))
    specific = target.rstrip(",").endswith("a")
    shared = {
        "shared_bytes": facts.shared,
        "warps": facts.num_warps,
        "ctas": facts.num_ctas,
        "cooperative": facts.launch_cooperative_grid,
        "dependent": facts.launch_pdl,
        "global_scratch": facts.global_scratch_size,
        "global_scratch_align": facts.global_scratch_align,
        "profile_scratch": facts.profile_scratch_size,
        "profile_scratch_align": facts.profile_scratch_align,
    }
    images = [Image(arch, specific, False, kernel.asm["cubin"], **shared)]
    if arch == PTX_ARCH:
        assert not specific, f"PTX for {target} runs on no later chip"
        images.append(Image(arch, False, True, kernel.asm["ptx"].encode(), **shared))
    return facts.name, images


def stack_bytes(cubin: bytes) -> int:
    """Local memory that a thread of the kernel uses: what ptxas did not keep in registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"\bSTACK:(\d+)", report).group(1))


def settings_to_try(settings: dict[str, int | str]) -> Iterator[dict[str, int | str]]:
    """The tile's own first; then ways in which ptxas may find registers for everything.

    To fit one more program onto a processor it may leave a few values in memory. Whether it does so depends
    on its level of effort, by no rule that holds for all kernels; with all registers it has no such aim, at
    the price of programs. A tile that needs more is shared by twice the warps.
    """
    yield settings
    for level in (5, 7, 0):
        yield settings | {"ptx_options": f"--register-usage-level={level}"}
    yield settings | {"ptx_options": "", "maxnreg": 255}
    yield settings | {"num_warps": 2 * settings["num_warps"]}


def _compile_without_stack(variant: Variant, arch: int):
    signature, target = variant.signatures[arch], GPUTarget("cuda", arch, 32)
    for settings in settings_to_try(signature.options()):
        kernel = triton.compile(signature.source(), target=target, options=settings)
        if stack_bytes(kernel.asm["cubin"]) == 0:
            return kernel
    raise ValueError(f"{variant.name} for sm_{arch} keeps values in local memory, whatever the settings")


def compile_named(name: str, arch: int) -> tuple[str, list[Image]]:
    """The same by name: kernels themselves do not travel between processes."""
    return compile_variant(next(variant for variant in variants() if variant.name == name), arch)
