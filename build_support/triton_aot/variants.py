"""The capped list of kernels that are compiled ahead of time.

What is not on it runs by ATen (or, from Python, by Triton's own compiler): the list covers ResNet,
GoogLeNet and DenseNet in inference, not everything that the kernels can do.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from cnnfast.triton import conv2d
from cnnfast.triton.signature import Signature
from cnnfast.triton.tiles import MACHINES, Access, Product, Tile, candidates

from .settings import MOST_VARIANTS

# Types and precision of products.
NUMBERS = (
    (torch.float16, "tf32"),
    (torch.bfloat16, "tf32"),
    (torch.float32, "tf32"),
    (torch.float32, "ieee"),
)
# Numbers that a kernel compiled with ALIGN holds for multiples of it.
COUNTS = ("in_channels", "out_channels", "x_stride", "y_stride", "residual_stride")
# Constants that say how a kernel computes, not what: any value serves any arguments.
FREE = frozenset({"ALIGN", "ACROSS_TAPS", "PRE_RELU", "UPCAST", "BLOCK_M", "BLOCK_N", "BLOCK_K", "HALVES"})


@dataclass(frozen=True)
class Variant:
    """One kernel with its constants, for some architectures.

    signatures: by architecture; they differ in what a tile says beside its size. multiples: what divides the
    value (or the address, in bytes) of an argument. free: constants that are no condition on the arguments.
    """

    name: str
    kernel_name: str
    signatures: dict[int, Signature] = field(hash=False)
    tile: tuple[int, int, int]
    multiples: dict[str, int] = field(hash=False)
    free: frozenset[str]

    @property
    def types(self) -> dict[str, str]:
        """Of every parameter in order; "constexpr" for constants."""
        return next(iter(self.signatures.values())).types

    @property
    def constants(self) -> dict[str, object]:
        return next(iter(self.signatures.values())).constants


@dataclass(frozen=True)
class ShapeClass:
    """What cnnfast.triton calls a class, and the tiles (pixels, channels) to choose from."""

    aligned: bool
    pointwise: bool
    across_taps: bool
    tiles: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        words = ["aligned" if self.aligned else "any"]
        words += ["pointwise"] if self.pointwise else []
        words += ["across"] if self.across_taps else []
        return "-".join(words)

    @property
    def product(self) -> Product:
        """A layer of the class with a long sum."""
        taps, channels = (1, 512) if self.pointwise else (49, 3) if self.across_taps else (9, 512)
        return Product(2**14, 512, channels, taps, 1, False)


CLASSES = (
    ShapeClass(True, True, False, ((128, 64), (64, 64))),
    ShapeClass(True, False, False, ((128, 64), (64, 64))),
    ShapeClass(True, False, True, ((64, 64),)),
    ShapeClass(False, True, False, ((64, 64),)),
    ShapeClass(False, False, True, ((64, 64),)),  # serves whatever the others do not
)


def variants() -> list[Variant]:
    """Every variant, in the order of the table."""
    result = list(_conv2d_forward())
    assert len(result) <= MOST_VARIANTS, f"{len(result)} variants, more than {MOST_VARIANTS}"
    assert len({variant.name for variant in result}) == len(result)
    return result


def _conv2d_forward() -> Iterator[Variant]:
    for dtype, precision in NUMBERS:
        for shape in CLASSES:
            for block in shape.tiles:
                for residual in (False, True):
                    for activation in ("none", "relu"):
                        yield _variant(dtype, precision, shape, block, residual, activation)


def _variant(
    dtype: torch.dtype,
    precision: str,
    shape: ShapeClass,
    block: tuple[int, int],
    residual: bool,
    activation: str,
) -> Variant:
    signatures, tiles = {}, set()
    for arch in MACHINES:
        tile = _tile(dtype, precision, shape, block, arch)
        signatures[arch] = conv2d.signature(
            dtype,
            tile,
            aligned=shape.aligned,
            pointwise=shape.pointwise,
            across_taps=shape.across_taps,
            precision=precision,
            bias=True,
            scale=True,
            residual=residual,
            activation=activation,
        )
        tiles.add(tuple(tile[:3]))
    (tile,) = tiles
    some = signatures[80]
    number = "ieee" if precision == "ieee" else str(dtype).removeprefix("torch.")
    words = ["conv2d", "tf32" if number == "float32" else number, shape.name]
    words += [f"{tile[0]}x{tile[1]}", activation, *(["residual"] if residual else [])]
    return Variant(
        name="-".join(words),
        kernel_name="conv2d",
        signatures=signatures,
        tile=tile,
        multiples=dict.fromkeys(some.aligned, 16) | dict.fromkeys(COUNTS, some.constants["ALIGN"]),
        free=FREE if shape.pointwise else FREE | {"POINTWISE"},
    )


def _tile(dtype: torch.dtype, precision: str, shape: ShapeClass, block: tuple[int, int], arch: int) -> Tile:
    """The table's tile of this size with as many stages as the architecture holds."""
    found = candidates(shape.product, dtype.itemsize, Access(shape.aligned, precision), MACHINES[arch])
    return next(tile for tile in found if tile[:2] == block)
