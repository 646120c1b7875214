"""The capped list of kernels that are compiled ahead of time.

What is not on it runs by ATen (or, from Python, by Triton's own compiler): the list covers ResNet,
GoogLeNet and DenseNet in inference and in training, not everything that the kernels can do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from cnnfast.triton import conv2d, conv2d_input_grad, conv2d_weight_grad, statistics
from cnnfast.triton.signature import Signature
from cnnfast.triton.tiles import MACHINES, Access, Machine, Product, Tile, candidates

from .settings import MOST_VARIANTS

# Types and precision of products.
NUMBERS = (
    (torch.float16, "tf32"),
    (torch.bfloat16, "tf32"),
    (torch.float32, "tf32"),
    (torch.float32, "ieee"),
)
# Numbers that a kernel compiled with ALIGN holds for multiples of it.
COUNTS = (
    *("in_channels", "out_channels", "x_stride", "y_stride", "residual_stride"),
    *("dy_stride", "dx_stride", "numel"),
)
# Constants that say how a kernel computes, not what: any value serves any arguments.
FREE = frozenset(
    (
        *("ALIGN", "ACROSS_TAPS", "UPCAST", "BLOCK_M", "BLOCK_N", "BLOCK_K", "BLOCK", "ROWS", "COLUMNS"),
        *("HALVES", "THROUGH_REGISTERS"),
    )
)
# The larger tile beside few pixels, and the one that fills a device.
TILES = ((128, 64), (64, 64))
TILE = ((64, 64),)


@dataclass(frozen=True)
class Variant:
    """One kernel with its constants, for some architectures.

    signatures: by architecture; they differ in what a tile says beside its size. tile: what a program
    computes, 0 where that has no meaning. multiples: what divides the value (or the address, in bytes) of an
    argument. free: constants that are no condition on the arguments.
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
    """What cnnfast.triton calls a class, and the tiles (rows, columns) to choose from."""

    aligned: bool
    pointwise: bool = False
    across_taps: bool = False
    strided: bool = False  # of gradients of the input, which are compiled for strides apart
    tiles: tuple[tuple[int, int], ...] = TILE

    @property
    def name(self) -> str:
        words = ["aligned" if self.aligned else "any"]
        words += ["pointwise"] if self.pointwise else []
        words += ["strided"] if self.strided else []
        words += ["across"] if self.across_taps else []
        return "-".join(words)

    @property
    def flags(self) -> dict[str, bool]:
        """For the signatures of all three products."""
        return {"aligned": self.aligned, "pointwise": self.pointwise, "across_taps": self.across_taps}

    @property
    def over_channels(self) -> Product:
        """A layer of the class with a long sum, forward or as a gradient of the input."""
        taps, channels = (1, 512) if self.pointwise else (49, 3) if self.across_taps else (9, 512)
        return Product(2**14, 512, channels, taps, 1, False)

    @property
    def of_input(self) -> Product:
        return self.over_channels._replace(of_input=True)

    @property
    def over_pixels(self) -> Product:
        """The same as a gradient of the weight."""
        return Product(512, 9 * 512, 2**14, 1, 1, True)


# Of each list the last class serves whatever the others do not.
FORWARD = (
    ShapeClass(True, pointwise=True, tiles=TILES),
    ShapeClass(True, tiles=TILES),
    ShapeClass(True, across_taps=True),
    ShapeClass(False, pointwise=True),
    ShapeClass(False, across_taps=True),
)
# In front of, or behind, a convolution that trains. (A first layer has no batch norm in front.)
PROLOGUE = (ShapeClass(True, pointwise=True), ShapeClass(True), ShapeClass(False, across_taps=True))
STATISTICS = (
    ShapeClass(True, pointwise=True, tiles=TILES),
    ShapeClass(True, tiles=TILES),
    ShapeClass(False, across_taps=True),
)
INPUT_GRAD = (
    ShapeClass(True, pointwise=True, tiles=TILES),
    ShapeClass(True, tiles=TILES),
    ShapeClass(True, strided=True),
    ShapeClass(False, across_taps=True),
    ShapeClass(False, strided=True, across_taps=True),
)
WEIGHT_GRAD = (
    ShapeClass(True, pointwise=True),
    ShapeClass(True, tiles=TILES),
    ShapeClass(False, across_taps=True),
)


def variants() -> list[Variant]:
    """Every variant, in the order of the table."""
    lists = (
        *(_conv2d(), _conv2d_with_prologue(), _conv2d_with_statistics(), _combine()),
        *(_input_grad(), _weight_grad(), _sum_parts()),
    )
    result = [variant for list in lists for variant in list]
    assert len(result) <= MOST_VARIANTS, f"{len(result)} variants, more than {MOST_VARIANTS}"
    assert len({variant.name for variant in result}) == len(result)
    return result


def _conv2d() -> Iterator[Variant]:
    for dtype, precision in NUMBERS:
        for shape in FORWARD:
            for block in shape.tiles:
                for residual in (False, True):
                    for activation in ("none", "relu"):
                        # A sum without ReLU behind it is rare: one tile of it.
                        if activation == "none" and residual and block not in TILE:
                            continue
                        epilogue = {"bias": True, "scale": True, "residual": residual}
                        words = [activation, *(["residual"] if residual else [])]
                        yield _forward(
                            dtype, precision, shape, block, words, activation=activation, **epilogue
                        )


def _conv2d_with_prologue() -> Iterator[Variant]:
    """Batch norm and ReLU in front: pre-activation blocks, dense blocks."""
    for dtype, precision in NUMBERS:
        for shape in PROLOGUE:
            for residual in (False, True):
                words = ["prologue", *(["residual"] if residual else [])]
                options = {"prologue": True, "pre_relu": True, "bias": True, "residual": residual}
                yield _forward(dtype, precision, shape, shape.tiles[0], words, **options)


def _conv2d_with_statistics() -> Iterator[Variant]:
    for dtype, precision in NUMBERS:
        for shape in STATISTICS:
            for block in shape.tiles:
                yield _forward(dtype, precision, shape, block, ["statistics"], with_statistics=True)


def _forward(
    dtype: torch.dtype,
    precision: str,
    shape: ShapeClass,
    block: tuple[int, int],
    words: list[str],
    *,
    prologue: bool = False,
    **options,
) -> Variant:
    def signature(tile: Tile) -> Signature:
        return conv2d.signature(dtype, tile, precision=precision, prologue=prologue, **shape.flags, **options)

    access = Access(shape.aligned, precision, prologue)
    name = ["conv2d", _number(dtype, precision), shape.name, f"{block[0]}x{block[1]}", *words]
    free = {"POINTWISE"} if not shape.pointwise else set()
    free |= set() if prologue else {"PRE_RELU"}
    return _variant("-".join(name), "conv2d", signature, shape.over_channels, dtype, access, block, free)


def _input_grad() -> Iterator[Variant]:
    for dtype, precision in NUMBERS:
        for shape in INPUT_GRAD:
            for block in shape.tiles:

                def signature(tile: Tile, dtype=dtype, precision=precision, shape=shape) -> Signature:
                    return conv2d_input_grad.signature(
                        dtype, tile, precision=precision, strided=shape.strided, **shape.flags
                    )

                name = f"input_grad-{_number(dtype, precision)}-{shape.name}-{block[0]}x{block[1]}"
                free = set() if shape.pointwise else {"POINTWISE"}
                access = Access(shape.aligned, precision)
                arguments = (shape.of_input, dtype, access, block, free)
                yield _variant(name, "conv2d_input_grad", signature, *arguments)


def _weight_grad() -> Iterator[Variant]:
    for dtype, precision in NUMBERS:
        for shape in WEIGHT_GRAD:
            # Without tensor cores a thread turns both operands round: no room for the larger tile.
            for block in TILE if precision == "ieee" else shape.tiles:

                def signature(tile: Tile, dtype=dtype, precision=precision, shape=shape) -> Signature:
                    return conv2d_weight_grad.signature(dtype, tile, precision=precision, **shape.flags)

                name = f"weight_grad-{_number(dtype, precision)}-{shape.name}-{block[0]}x{block[1]}"
                free = {"PRE_RELU"} if shape.pointwise else {"PRE_RELU", "POINTWISE"}
                access = Access(shape.aligned, precision)
                arguments = (shape.over_pixels, dtype, access, block, free)
                yield _variant(name, "conv2d_weight_grad", signature, *arguments)


def _sum_parts() -> Iterator[Variant]:
    """What ends a gradient of the weight."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for aligned in (True, False):
            signature = conv2d_weight_grad.sum_signature(dtype, aligned=aligned)
            number = str(dtype).removeprefix("torch.")
            yield _fixed(f"sum_parts-{number}-{'aligned' if aligned else 'any'}", "sum_parts", signature)


def _combine() -> Iterator[Variant]:
    """What ends batch statistics."""
    for last in (False, True):
        yield _fixed(f"combine-{'last' if last else 'inner'}", "combine", statistics.signature(last))


def _fixed(name: str, kernel_name: str, signature: Signature) -> Variant:
    """A kernel that is the same on every architecture."""
    signatures = dict.fromkeys(MACHINES, signature)
    return Variant(name, kernel_name, signatures, (0, 0, 0), _multiples(signature), FREE)


def _variant(
    name: str,
    kernel_name: str,
    signature: Callable[[Tile], Signature],
    product: Product,
    dtype: torch.dtype,
    access: Access,
    block: tuple[int, int],
    free: set[str],
) -> Variant:
    tiles = {arch: _tile(product, dtype, access, block, machine) for arch, machine in MACHINES.items()}
    signatures = {arch: signature(tile) for arch, tile in tiles.items()}
    (tile,) = {tuple(tile[:3]) for tile in tiles.values()}
    return Variant(name, kernel_name, signatures, tile, _multiples(signatures[80]), FREE | free)


def _multiples(signature: Signature) -> dict[str, int]:
    return dict.fromkeys(signature.aligned, 16) | dict.fromkeys(COUNTS, signature.constants.get("ALIGN", 1))


def _tile(
    product: Product, dtype: torch.dtype, access: Access, block: tuple[int, int], machine: Machine
) -> Tile:
    """The table's tile of this size, with as many stages as there is room."""
    found = {tile[:2]: tile for tile in candidates(product, dtype.itemsize, access, machine)}
    if block not in found:
        raise ValueError(f"no tile of {block[0]}x{block[1]} for {product}, {access}, sm_{machine.capability}")
    return found[block]


def _number(dtype: torch.dtype, precision: str) -> str:
    if dtype == torch.float32:
        return "ieee" if precision == "ieee" else "tf32"
    return str(dtype).removeprefix("torch.")
