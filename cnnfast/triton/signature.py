"""How a kernel is compiled: the types of its arguments, its constants, what is known of its addresses."""

from typing import NamedTuple

import torch
from triton.compiler import ASTSource

from cnnfast.triton.blocks import INTERPRETED
from cnnfast.triton.tiles import REGISTER_LEVEL, Tile

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
VECTOR_BYTES = 16  # the widest access of one thread, and what `aligned` promises


class Signature(NamedTuple):
    """One variant of a kernel.

    kernel: the Triton function. types: of every argument in order: "*fp16" (a pointer), "i32" or "constexpr".
    constants: values of the constexpr ones; None for a tensor that this variant has not. aligned: pointers
    that are multiples of 16 bytes. settings: of the compiler.
    """

    kernel: object
    types: dict[str, str]
    constants: dict[str, object]
    aligned: tuple[str, ...]
    settings: dict[str, int | str]

    @property
    def num_warps(self) -> int:
        return self.settings["num_warps"]

    def source(self) -> ASTSource:
        """For triton.compile."""
        places = {name: place for place, name in enumerate(self.types)}
        attributes = {(places[name],): [["tt.divisibility", VECTOR_BYTES]] for name in self.aligned}
        return ASTSource(self.kernel, self.types, self.constants, attributes)

    def options(self) -> dict[str, int | str]:
        """For triton.compile and for launches."""
        return self.settings


def make_signature(
    kernel,
    images: dict[str, str | None],
    vectors: dict[str, str | None],
    constants: dict[str, object],
    aligned: bool,
    settings: dict[str, int | str],
) -> Signature:
    """Element types of images and weights, of vectors with an element per channel; None where absent.

    The addresses of images are aligned or unknown, nothing is ever known of those of vectors. Arguments that
    are named nowhere are sizes: i32.
    """
    pointers = images | vectors
    constants = constants | {name: None for name, kind in pointers.items() if kind is None}

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        return f"*{pointers[name]}" if name in pointers else "i32"

    types = {name: kind(name) for name in kernel.arg_names}
    unknown = (set(pointers) | set(constants)) - set(types)
    assert not unknown, f"{kernel.__name__} has no arguments {sorted(unknown)}"
    known = tuple(name for name in types if aligned and images.get(name) is not None)
    return Signature(kernel, types, constants, known, settings)


def compiler_options(
    num_warps: int, num_stages: int = 1, register_level: int = REGISTER_LEVEL
) -> dict[str, int | str]:
    return {
        "num_warps": num_warps,
        "num_stages": num_stages,
        "ptx_options": f"--register-usage-level={register_level}",
    }


def tile_options(tile: Tile) -> dict[str, int | str]:
    return compiler_options(tile.num_warps, tile.num_stages, tile.register_level)


def product_constants(dtype: torch.dtype, tile: Tile, aligned: bool, precision: str) -> dict[str, object]:
    """Those of every kernel that multiplies matrices. ALIGN: elements that a 16-byte access takes, or 1 where
    nothing is known of the addresses."""
    return {
        "ALIGN": VECTOR_BYTES // dtype.itemsize if aligned else 1,
        "PRECISION": precision,
        "UPCAST": INTERPRETED and dtype == torch.bfloat16,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
    }
