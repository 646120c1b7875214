"""One variant for one architecture: machine code, and what the launcher has to know about it."""

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
    signature = variant.signatures[arch]
    target = GPUTarget("cuda", arch, 32)
    kernel = triton.compile(signature.source(), target=target, options=signature.options())
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


def compile_named(name: str, arch: int) -> tuple[str, list[Image]]:
    """The same by name: kernels themselves do not travel between processes."""
    return compile_variant(next(variant for variant in variants() if variant.name == name), arch)
