"""What the GPU kernels read and write, by reckoning: `python -m cnnfast.benchmarking.gpu.model docs/gpu.md`.

Nothing here was measured. For each kernel and layer the bytes that any kernel must move (every operand once)
stand beside those that ours issues, from its launch grid, its tiles and the order of its programs:

* L2: what programs ask for. A tile reads its operands whole, so inputs are read once per column of tiles (and
  tap), weights once per row of tiles.
* Memory: what L2 cannot give. Programs run in waves, one program to a multiprocessor; a wave's operands are
  read from memory once. Nothing is kept from wave to wave but weights that fit into half of L2, so rows that
  neighbouring waves share count twice. Partial sums are written to memory; the kernel that follows reads them
  from L2 where they fit into half of it.

A kernel is bound by memory where its compulsory bytes take longer than its multiply-adds at the data sheet's
rates. Where both take less than LATENCY neither bounds it: that is the length of a launch itself, and there
sums are cut into more parts to fill the chip.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cnnfast.triton.conv2d_arguments import Geometry
from cnnfast.triton.tiles import (
    MACHINES,
    Access,
    Product,
    Tile,
    choose_parts,
    choose_tile,
    forward_product,
    input_grad_product,
    weight_grad_product,
)

HEADING = "## Modelled, not measured"
END = "<!-- end of the modelled figures -->"
LIMIT = 1.15  # issued over compulsory bytes of memory, for kernels that memory bounds
BATCH = 32
ITEM = 2  # float16
LATENCY = 2e-6  # seconds


@dataclass(frozen=True)
class Chip:
    """Peaks of NVIDIA's data sheets: dense float16 operations and bytes of memory per second; L2 bytes."""

    name: str
    capability: int
    operations: float
    bandwidth: float
    l2: int
    source: str


CHIPS = (
    Chip("A100", 80, 312e12, 2039e9, 40 * 2**20, "NVIDIA A100 data sheet (2021), A100 80GB SXM"),
    Chip("H100", 90, 989.4e12, 3350e9, 50 * 2**20, "NVIDIA H100 data sheet (2023), H100 SXM"),
)


@dataclass(frozen=True)
class Layer:
    """A convolution of a network, batch norm and activation folded in. residual: another tensor is added."""

    network: str
    channels: int
    size: int
    out_channels: int
    kernel: int
    stride: int = 1
    residual: bool = False

    @property
    def name(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        added = " + residual" if self.residual else ""
        return (
            f"{self.channels} → {self.out_channels}, {self.kernel}×{self.kernel}{stride}, {self.size}²{added}"
        )

    @property
    def geometry(self) -> Geometry:
        out = (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1
        pair = (self.stride, self.stride), (self.kernel // 2, self.kernel // 2), (1, 1)
        sizes = (BATCH, self.size, self.size, out, out, self.channels, self.out_channels)
        return Geometry(*sizes, self.kernel, self.kernel, *pair, 1)


def _layers() -> Iterator[Layer]:
    """Distinct convolutions of ResNet-50, GoogLeNet and DenseNet-121 on images of 224 pixels."""
    yield Layer("ResNet", 3, 224, 64, 7, 2)
    width = 64
    for size, inner in ((56, 64), (28, 128), (14, 256), (7, 512)):
        if inner > 64:
            yield Layer("ResNet", width, 2 * size, inner, 1)
            yield Layer("ResNet", inner, 2 * size, inner, 3, 2)
            yield Layer("ResNet", width, 2 * size, 4 * inner, 1, 2)
        yield Layer("ResNet", 4 * inner, size, inner, 1)
        yield Layer("ResNet", inner, size, inner, 3)
        yield Layer("ResNet", inner, size, 4 * inner, 1, residual=True)
        width = 4 * inner
    yield Layer("GoogLeNet", 64, 56, 192, 3)
    for channels, size, one, reduce3, three, reduce5, five, pool in (
        (192, 28, 64, 96, 128, 16, 32, 32),
        (480, 14, 192, 96, 208, 16, 48, 64),
        (832, 7, 384, 192, 384, 48, 128, 128),
    ):
        for out in (one, reduce3, reduce5, pool):
            yield Layer("GoogLeNet", channels, size, out, 1)
        yield Layer("GoogLeNet", reduce3, size, three, 3)
        yield Layer("GoogLeNet", reduce5, size, five, 5)
    for size, first, last in ((56, 64, 256), (28, 128, 512), (14, 256, 1024), (7, 512, 1024)):
        yield Layer("DenseNet", first, size, 128, 1)
        yield Layer("DenseNet", last - 32, size, 128, 1)
        yield Layer("DenseNet", 128, size, 32, 3)
        if size > 7:
            yield Layer("DenseNet", last, size, last // 2, 1)


LAYERS = tuple(dict.fromkeys(_layers()))


@dataclass(frozen=True)
class Figures:
    """Of one kernel on one layer and chip."""

    kernel: str
    layer: Layer | None
    label: str
    chip: Chip
    tile: str
    operations: float
    compulsory: float
    issued: float
    l2: float

    @property
    def ratio(self) -> float:
        return self.issued / self.compulsory

    @property
    def bound(self) -> str:
        memory, arithmetic = self.compulsory / self.chip.bandwidth, self.operations / self.chip.operations
        if max(memory, arithmetic) < LATENCY:
            return "latency"
        return "memory" if memory > arithmetic else "arithmetic"

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.compulsory

    @property
    def least_microseconds(self) -> float:
        return 1e6 * max(self.issued / self.chip.bandwidth, self.operations / self.chip.operations)


def figures() -> list[Figures]:
    """Everything the document shows."""
    rows = []
    for chip in CHIPS:
        rows += [convolution(layer, chip) for layer in LAYERS]
        rows += [input_gradient(layer, chip) for layer in LAYERS if layer.channels > 3]
        rows += [weight_gradient(layer, chip) for layer in LAYERS]
        rows += [row for layer in _NORMALISED for row in normalisations(layer, chip)]
    return rows


def convolution(layer: Layer, chip: Chip) -> Figures:
    """Forward with folded batch norm, activation and, where the layer has one, a residual."""
    sizes = layer.geometry
    product = forward_product(sizes)
    tile = _tile(product, layer.channels, chip)
    outputs = sizes.pixels * sizes.out_channels
    weights = sizes.out_channels * sizes.reduction
    inputs = _touched(sizes) * sizes.in_channels
    vectors = 2 * 4 * sizes.out_channels
    compulsory = ITEM * (inputs + weights + outputs * (2 if layer.residual else 1)) + vectors
    reads = _waves(sizes, tile, chip, weights)
    through_l2 = _tile_reads(product, tile) + ITEM * outputs * (2 if layer.residual else 1)
    issued = ITEM * (reads + outputs * (2 if layer.residual else 1)) + vectors
    return _figures("forward", layer, chip, tile, product, compulsory, issued, through_l2)


def input_gradient(layer: Layer, chip: Chip) -> Figures:
    """Of the input: the same product over the gradient's pixels, one phase of a stride after the other."""
    sizes = layer.geometry
    product = input_grad_product(sizes)
    tile = _tile(product, sizes.out_channels, chip)
    outputs = sizes.batch * sizes.in_h * sizes.in_w * sizes.in_channels
    weights = sizes.out_channels * sizes.reduction
    gradients = sizes.pixels * sizes.out_channels
    # Phases of a stride are programs side by side: they share the pixels of the gradient.
    backwards = sizes._replace(
        **{"in_h": sizes.out_h, "in_w": sizes.out_w, "out_h": sizes.out_h, "out_w": sizes.out_w},
        **{"in_channels": sizes.out_channels, "out_channels": sizes.in_channels, "stride": (1, 1)},
    )
    reads = _waves(backwards, tile, chip, weights)
    compulsory = ITEM * (gradients + weights + outputs)
    through_l2 = _tile_reads(product, tile) * product.copies + ITEM * outputs
    return _figures(
        "input gradient", layer, chip, tile, product, compulsory, ITEM * (reads + outputs), through_l2
    )


def weight_gradient(layer: Layer, chip: Chip) -> Figures:
    """Of the weight: sums over pixels, cut into parts that are written in float32 and added up afterwards."""
    sizes = layer.geometry
    product = weight_grad_product(sizes)
    tile = _tile(product, min(layer.channels, layer.out_channels), chip)
    machine = MACHINES[chip.capability]
    parts = choose_parts(product, tile, ITEM, machine)
    gradients = sizes.pixels * sizes.out_channels
    inputs = _touched(sizes) * sizes.in_channels
    weights = sizes.out_channels * sizes.reduction
    partial = 4 * parts * weights
    written = ITEM * weights + _through_memory(partial, chip)
    # Tiles of a part are programs side by side. Where they are more than a wave, each wave reads the pixels
    # again unless they fit.
    waves = -(-tile.tiles(product) // machine.processors)
    operands = ITEM * (gradients + inputs)
    again = 1 if operands <= chip.l2 // 2 else waves
    compulsory = operands + ITEM * weights
    through_l2 = _tile_reads(product, tile) + 2 * partial + ITEM * weights
    issued = operands * again + written
    return _figures("weight gradient", layer, chip, tile, product, compulsory, issued, through_l2)


# Channels and size of batch norms: what follows the convolutions of a ResNet's stages.
_NORMALISED = ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7))
LANES = 8  # channels of a thread
BLOCK_THREADS = 256
LEAST_ROWS = 32  # of a block that leaves sums: their bytes stay small beside those that it reads
# Blocks that a multiprocessor holds, as csrc/cuda/batch_norm_args.h has them.
STATISTICS_BLOCKS, BACKWARD_BLOCKS = 3, 2


def normalisations(layer: tuple[int, int], chip: Chip) -> Iterator[Figures]:
    """Batch norm + ReLU + add in training: 16 bytes at a time, each element once a pass, a bit each for ReLU.

    Statistics: one read. Values: two reads, one write. Gradients: the sums per channel read gradient and
    input and leave the residual's gradient, which the second pass reads with the input.
    """
    channels, size = layer
    pixels = BATCH * size * size
    mask = 1 / 8 / ITEM  # of an element
    vectors = 4 * 4 * channels
    for name, accesses, blocks in (
        ("batch statistics", 1, STATISTICS_BLOCKS),
        ("normalise + ReLU + add", 3 + mask, 0),
        ("gradients of normalise + ReLU + add", 6 + mask, BACKWARD_BLOCKS),
    ):
        compulsory = ITEM * pixels * channels * accesses + vectors
        partial = 2 * 4 * channels * _row_blocks(pixels, channels, blocks, chip)
        issued = compulsory + _through_memory(partial, chip)
        label = f"{channels} channels, {size}²"
        operations = 8.0 * pixels * channels
        yield Figures(name, None, label, chip, "-", operations, compulsory, issued, compulsory + 2 * partial)


def _row_blocks(pixels: int, channels: int, blocks: int, chip: Chip) -> int:
    """make_layout of csrc/cuda/layout.h for channels that eight divides: how many blocks share the pixels."""
    packs = channels // LANES
    tiles = -(-packs // BLOCK_THREADS)
    rows_per_block = BLOCK_THREADS // -(-packs // tiles)
    resident = blocks * MACHINES[chip.capability].processors // tiles
    return min(-(-pixels // max(rows_per_block, LEAST_ROWS)), resident)


def _through_memory(partial: float, chip: Chip) -> float:
    """Bytes of memory for partial results that are written, and read by the next kernel."""
    return partial if partial <= chip.l2 // 2 else 2 * partial


def _tile(product: Product, channels: int, chip: Chip) -> Tile:
    return choose_tile(product, ITEM, Access(channels % 8 == 0, "tf32"), MACHINES[chip.capability])


def _figures(kernel, layer, chip, tile, product, compulsory, issued, through_l2) -> Figures:
    operations = 2.0 * product.rows * product.columns * product.reduction * product.copies
    shape = f"{tile.block_m}×{tile.block_n}×{tile.block_k}"
    return Figures(kernel, layer, layer.name, chip, shape, operations, compulsory, issued, through_l2)


def _touched(sizes: Geometry) -> int:
    """Input pixels that the convolution needs: a 1×1 of stride 2 leaves three of four out."""
    rows = min(sizes.in_h, sizes.out_h * min(sizes.kernel_h, sizes.stride[0]) + sizes.kernel_h)
    columns = min(sizes.in_w, sizes.out_w * min(sizes.kernel_w, sizes.stride[1]) + sizes.kernel_w)
    if sizes.kernel_h < sizes.stride[0]:
        rows, columns = sizes.out_h * sizes.kernel_h, sizes.out_w * sizes.kernel_w
    return sizes.batch * rows * columns


def _waves(sizes: Geometry, tile: Tile, chip: Chip, weights: int) -> float:
    """Elements that waves of programs read from memory."""
    n_tiles = -(-sizes.out_channels // tile.block_n) * sizes.groups
    m_tiles = -(-sizes.pixels // tile.block_m)
    processors = MACHINES[chip.capability].processors
    rows_of_tiles = max(1, processors // n_tiles)  # channels first: programs side by side share their pixels
    waves = -(-m_tiles // rows_of_tiles)
    # Rows of the input that two waves share, where a wave ends inside an image.
    shared_rows = max(0, sizes.kernel_h - sizes.stride[0])
    halo = (waves - 1) * shared_rows * sizes.in_w * sizes.in_channels
    inputs = _touched(sizes) * sizes.in_channels + halo
    if n_tiles > processors:  # pixels of a tile row are read by more waves than one
        inputs *= -(-n_tiles // processors)
    times = 1 if ITEM * weights <= chip.l2 // 2 else waves
    return inputs + weights * times


def _tile_reads(product: Product, tile: Tile) -> float:
    """Bytes that tiles of one product ask for: both operands of every step."""
    return ITEM * tile.tiles(product) * (tile.block_m + tile.block_n) * float(product.reduction)


COLUMNS = ("layer", "tile", "FLOP/byte", "compulsory MB", "issued MB", "ratio", "L2", "bound", "least µs")
INTRODUCTION = """
Reckoned by `python -m cnnfast.benchmarking.gpu.model docs/gpu.md` from launch grids, tiles and the order of
programs, for {item} and a batch of {batch}; its docstring says how. Peaks are the vendor's:
{peaks}

`ratio` is issued over compulsory bytes of memory; `bound` what bounds the kernel at the data sheet's rates,
and where that is memory the ratio is at most {limit}. `L2` is what programs ask of L2, as a multiple of the
compulsory bytes. `least` is the time at these rates: a bound, no forecast.
"""


def document(rows: list[Figures]) -> str:
    """The section of docs/gpu.md."""
    peaks = "\n".join(map(_peaks, CHIPS))
    text = HEADING + "\n" + INTRODUCTION.format(item="float16", batch=BATCH, peaks=peaks, limit=LIMIT)
    for chip in CHIPS:
        for kernel in dict.fromkeys(row.kernel for row in rows):
            chosen = [row for row in rows if row.chip == chip and row.kernel == kernel]
            head = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"
            text += f"\n### {chip.name}: {kernel}\n\n{head}" + "".join(map(_line, chosen))
    return text + f"\n{END}\n"


def _peaks(chip: Chip) -> str:
    rates = f"{chip.operations / 1e12:.1f} TFLOP/s dense float16, {chip.bandwidth / 1e9:.0f} GB/s"
    return f"* {chip.source}: {rates}, {chip.l2 // 2**20} MB of L2"


def _line(row: Figures) -> str:
    network = f"{row.layer.network}: " if row.layer else ""
    return (
        f"| {network}{row.label} | {row.tile} | {row.intensity:.0f} | {row.compulsory / 1e6:.1f} | "
        f"{row.issued / 1e6:.1f} | {row.ratio:.2f} | {row.l2 / row.compulsory:.1f} | {row.bound} | "
        f"{row.least_microseconds:.1f} |\n"
    )


def updated(text: str, section: str) -> str:
    """The document with its modelled section replaced."""
    start, end = text.index(HEADING), text.index(END) + len(END) + 1
    return text[:start] + section + text[end:]


def main(path: str) -> None:
    file = Path(path)
    file.write_text(updated(file.read_text(encoding="utf-8"), document(figures())), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
