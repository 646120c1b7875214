"""Which tile of the output a program computes: a short table, pruned by resources, ranked by a cost model.

The model counts clocks from published rates; nothing here was timed on a device. It is deterministic, so that
a shape always runs the same code and gives the same bits.
"""

from functools import lru_cache
from typing import NamedTuple

import torch

from cnnfast.triton.conv2d_arguments import Geometry


class Tile(NamedTuple):
    """Output pixels × output channels of one program, channels × taps of one step, warps, pipeline stages."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def spans_taps(self, sizes: Geometry) -> bool:
        """Whether a step sums over several taps, because the channels of one would not fill it."""
        return sizes.taps > 1 and sizes.in_channels < self.block_k

    def steps(self, sizes: Geometry) -> int:
        if self.spans_taps(sizes):
            return _divide_up(sizes.reduction, self.block_k)
        return sizes.taps * _divide_up(sizes.in_channels, self.block_k)

    def stage_bytes(self, item_size: int) -> int:
        """Shared memory of one pipeline stage: the operands of one step."""
        return (self.block_m + self.block_n) * self.block_k * item_size

    def shared_bytes(self, item_size: int) -> int:
        """The pipeline, and in the same place afterwards the float32 sums on their way to a 16-byte store."""
        return max(self.num_stages * self.stage_bytes(item_size), self.block_m * self.block_n * 4)


class Access(NamedTuple):
    """How operands are read and multiplied. precision: "tf32" for tensor cores, "ieee" for plain float32."""

    vectors: bool
    precision: str


class Machine(NamedTuple):
    """What the choice depends on: multiprocessors and shared memory that one program may have."""

    processors: int
    shared_bytes: int
    capability: int


# (pixels, channels, warps). Large tiles read less per multiplication; the small ones fill the processors when
# the image is small. At most 64 accumulators a thread leave registers for operands and pointers.
SHAPES = (
    (128, 128, 8),
    (128, 64, 4),
    (64, 128, 4),
    (64, 64, 4),
    (128, 32, 4),
    (64, 32, 4),
    (32, 64, 4),
    (32, 32, 2),
)
# Where a thread also holds a pointer for every element that it reads (channels that allow no 16-byte access)
# or the operands themselves (no tensor cores), 32 accumulators and shorter steps fit without spilling.
SMALL_SHAPES = ((128, 64, 8), (64, 64, 4), (64, 32, 4), (32, 64, 4), (32, 32, 2))
GATHER_STEP = 32
IEEE_STEP = 16
MAX_STAGES = 4
STEP_BYTES = 128  # one row of a step is one line of shared memory, read without bank conflicts
LATENCY = 1000  # clocks before the first multiplication and after the last: two trips to memory
TENSOR_CORES = {80: 1024, 90: 2048, 100: 4096}  # float16 multiply-adds per clock, one multiprocessor
BYTES_PER_CLOCK = 47  # from L2, one multiprocessor: an A100 reads 5120 a clock for all 108


@lru_cache
def machine_of(device: torch.device) -> Machine:
    """The machine behind a device; a nominal small one for the CPU, where only the interpreter runs."""
    if device.type != "cuda":
        return Machine(processors=108, shared_bytes=99 * 1024, capability=80)
    facts = torch.cuda.get_device_properties(device)
    capability = 10 * facts.major + facts.minor
    return Machine(facts.multi_processor_count, facts.shared_memory_per_block_optin, capability)


def candidates(sizes: Geometry, item_size: int, access: Access, machine: Machine) -> list[Tile]:
    """Every tile that the machine can hold, with the deepest pipeline that fits beside it."""
    longest = STEP_BYTES // item_size
    if not access.vectors:
        longest = GATHER_STEP
    if access.precision == "ieee":
        longest = IEEE_STEP
    block_k = min(longest, max(16, _next_power_of_2(sizes.reduction)))
    fits = []
    for shape in SHAPES if access.vectors and access.precision == "tf32" else SMALL_SHAPES:
        block_m, block_n, warps = shape
        tile = Tile(block_m, block_n, block_k, warps, MAX_STAGES)
        # A pipeline deeper than the loop is long only takes shared memory from other programs.
        stages = min(MAX_STAGES, tile.steps(sizes), machine.shared_bytes // tile.stage_bytes(item_size))
        tile = tile._replace(num_stages=stages)
        if stages > 0 and tile.shared_bytes(item_size) <= machine.shared_bytes:
            fits.append(tile)
    return fits


def choose_tile(sizes: Geometry, item_size: int, access: Access, machine: Machine) -> Tile:
    """The candidate with the fewest modelled clocks; the first of the table where several are equal."""
    per_clock = _multiplications(item_size, access.precision, machine)

    def clocks(tile: Tile) -> float:
        m_tiles = _divide_up(sizes.pixels, tile.block_m)
        n_tiles = _divide_up(sizes.out_channels, tile.block_n) * sizes.groups
        waves = _divide_up(m_tiles * n_tiles, machine.processors)
        multiply = tile.block_m * tile.block_n * tile.block_k / per_clock
        read = (tile.block_m + tile.block_n) * tile.block_k * item_size / BYTES_PER_CLOCK
        write = tile.block_m * tile.block_n * item_size / BYTES_PER_CLOCK
        return waves * (tile.steps(sizes) * max(multiply, read) + write) + LATENCY

    return min(candidates(sizes, item_size, access, machine), key=clocks)


def _multiplications(item_size: int, precision: str, machine: Machine) -> int:
    """Multiply-adds per clock and multiprocessor (vendor's peak rates)."""
    if precision == "ieee":
        return 64 if machine.capability == 80 else 128
    return TENSOR_CORES.get(machine.capability, 512) // (item_size // 2)


def _next_power_of_2(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _divide_up(value: int, by: int) -> int:
    return -(-value // by)
