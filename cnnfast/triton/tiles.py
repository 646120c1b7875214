"""Which tile of the output a program computes: a short table, pruned by resources, ranked by a cost model.

The model counts clocks from published rates; nothing here was timed on a device. It is deterministic, so that
a shape always runs the same code and gives the same bits.
"""

from functools import lru_cache
from typing import NamedTuple

import torch

from cnnfast.triton.conv2d_arguments import Geometry

# Where fewer registers would let one more program onto a processor, ptxas may keep a few values in local
# memory for it. It depends on its --register-usage-level: at its own, 5, it does so for these alone (kind of
# product, numbers, 16-byte accesses, capability); at 7 not for these, but for a dozen others.
REGISTER_LEVEL = 5
HIGHER_LEVEL = 7
LEVEL_5_SPILLS = {
    ("conv2d", "16 bits", False, 89),
    ("conv2d", "16 bits", False, 120),
    ("conv2d", "16 bits", True, 120),
    ("conv2d", "tf32", True, 120),
    ("conv2d", "ieee", False, 86),
    ("conv2d", "ieee", False, 89),
    ("conv2d", "ieee", True, 90),
    ("weight_grad", "16 bits", False, 80),
    ("weight_grad", "ieee", True, 80),
}


class Product(NamedTuple):
    """A convolution or a gradient as the kernels see it: matrix products with long sums.

    rows, columns: of one product. length: summands of one tap, taps: taps of the sum. copies: products that
    do not share operands (groups, phases of a stride). over_pixels: the sum runs over pixels, and may be cut
    into parts (a gradient of the weight); else over taps and the channels of a pixel, which are adjacent in
    memory. of_input: a gradient of the input.
    """

    rows: int
    columns: int
    length: int
    taps: int
    copies: int
    over_pixels: bool
    of_input: bool = False

    @property
    def kind(self) -> str:
        return "weight_grad" if self.over_pixels else "input_grad" if self.of_input else "conv2d"

    @property
    def reduction(self) -> int:
        return self.taps * self.length


def forward_product(sizes: Geometry) -> Product:
    return Product(sizes.pixels, sizes.out_channels, sizes.in_channels, sizes.taps, sizes.groups, False)


def input_grad_product(sizes: Geometry) -> Product:
    phases = sizes.stride[0] * sizes.stride[1]
    rows = _divide_up(sizes.batch * sizes.in_h * sizes.in_w, phases)
    taps = _divide_up(sizes.taps, phases)
    return Product(rows, sizes.in_channels, sizes.out_channels, taps, sizes.groups * phases, False, True)


def weight_grad_product(sizes: Geometry) -> Product:
    return Product(sizes.out_channels, sizes.reduction, sizes.pixels, 1, sizes.groups, True)


class Tile(NamedTuple):
    """Rows × columns of one program, summands of one step, warps, pipeline stages.

    halves: columns of a result are finished and stored in two halves. through_registers: operands whose
    summands lie apart in memory are brought side by side in registers. register_level: how far ptxas goes to
    need fewer registers (its --register-usage-level).
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    halves: bool = False
    through_registers: bool = False
    register_level: int = REGISTER_LEVEL

    @property
    def accumulators(self) -> int:
        """float32 sums of one thread."""
        return self.block_m * self.block_n // (32 * self.num_warps)

    def spans_taps(self, product: Product) -> bool:
        """Whether a step sums over several taps, because the channels of one would not fill it."""
        return product.taps > 1 and product.length < self.block_k

    def steps(self, product: Product) -> int:
        if self.spans_taps(product):
            return _divide_up(product.reduction, self.block_k)
        return product.taps * _divide_up(product.length, self.block_k)

    def tiles(self, product: Product) -> int:
        return _divide_up(product.rows, self.block_m) * _divide_up(product.columns, self.block_n)

    def stage_bytes(self, item_size: int) -> int:
        """Shared memory of one pipeline stage: the operands of one step."""
        return (self.block_m + self.block_n) * self.block_k * item_size

    def shared_bytes(self, item_size: int, prologue: bool = False) -> int:
        """The pipeline and its barriers; afterwards, in the same place, the sums on their way to a store.

        A prologue's result goes through shared memory once more, and its parameters through the pipeline.
        """
        stages = self.num_stages * self.stage_bytes(item_size)
        if prologue:
            larger = max(self.block_m, self.block_n)
            stages += larger * self.block_k * item_size + self.num_stages * self.block_k * 8
        return max(stages, self.block_m * self.block_n * 4) + BARRIER_BYTES


class Access(NamedTuple):
    """How operands are read and multiplied.

    vectors: 16-byte accesses fit. precision: "tf32" for tensor cores, "ieee" for plain float32.
    """

    vectors: bool
    precision: str
    prologue: bool = False


class Machine(NamedTuple):
    """What the choice depends on: multiprocessors, shared memory that one program may have, kind of chip."""

    processors: int
    shared_bytes: int
    capability: int


class Limits(NamedTuple):
    """Of one multiprocessor; registers are 65536 everywhere (CUDA programming guide, table of limits)."""

    program_shared_bytes: int
    shared_bytes: int
    warps: int
    programs: int


LIMITS = {
    80: Limits(163 * 1024, 164 * 1024, 64, 32),
    86: Limits(99 * 1024, 100 * 1024, 48, 16),
    89: Limits(99 * 1024, 100 * 1024, 48, 24),
    90: Limits(227 * 1024, 228 * 1024, 64, 32),
    100: Limits(227 * 1024, 228 * 1024, 64, 32),
    120: Limits(99 * 1024, 100 * 1024, 48, 24),
}
# Machines that kernels are compiled and modelled for: A100, RTX 3090 and A40, L40S, H100 SXM, B200, RTX PRO
# 6000.
PROCESSORS = {80: 108, 86: 84, 89: 142, 90: 132, 100: 148, 120: 188}
MACHINES = {
    capability: Machine(PROCESSORS[capability], limits.program_shared_bytes, capability)
    for capability, limits in LIMITS.items()
}

# (rows, columns, warps). Large tiles read less per multiplication; the small ones fill the processors when
# the image is small; 256 rows beside few columns read the weight less often. At most 64 accumulators a thread
# leave registers for operands and pointers.
SHAPES = (
    (128, 128, 8),
    (256, 64, 8),
    (128, 64, 4),
    (64, 128, 4),
    (64, 64, 4),
    (256, 32, 8),
    (128, 32, 4),
    (64, 32, 4),
    (32, 64, 4),
    (32, 32, 2),
)
# Where a thread holds the operands themselves (no tensor cores), 32 accumulators and shorter steps fit.
IEEE_SHAPES = ((128, 64, 8), (64, 64, 4), (64, 32, 4), (32, 64, 4), (32, 32, 2))
# Where it also holds a pointer for every element that it reads (channels that allow no 16-byte access), 16.
GATHER_SHAPES = ((64, 64, 8), (64, 32, 4), (32, 64, 4), (32, 32, 4))
GATHER_STEP = 32
IEEE_STEP = 16
PIXEL_STEP = 64  # of sums over pixels in 16-bit types; half as many in float32
MAX_STAGES = 4
BARRIER_BYTES = 64
STEP_BYTES = 128  # one row of a step is one line of shared memory, read without bank conflicts
LATENCY = 1000  # clocks before the first multiplication and after the last: two trips to memory
TENSOR_CORES = {80: 1024, 90: 2048, 100: 4096}  # float16 multiply-adds per clock, one multiprocessor
BYTES_PER_CLOCK = 47  # from L2, one multiprocessor: an A100 reads 5120 a clock for all 108
PARTS_SHARE = (
    8  # writing and reading the parts of a sum over pixels takes at most 1 / 8 of the operands' bytes
)
LEAST_STEPS = 4  # of a part: fewer would not fill the pipeline


@lru_cache
def machine_of(device: torch.device) -> Machine:
    """The machine behind a device; for the CPU (interpreter) an A100 with a small chip's shared memory."""
    if device.type != "cuda":
        return Machine(processors=108, shared_bytes=99 * 1024, capability=80)
    facts = torch.cuda.get_device_properties(device)
    capability = 10 * facts.major + facts.minor
    return Machine(facts.multi_processor_count, facts.shared_memory_per_block_optin, capability)


def candidates(product: Product, item_size: int, access: Access, machine: Machine) -> list[Tile]:
    """Every tile that the machine can hold, with the deepest pipeline that fits beside it: what to time."""
    fits = []
    for block_m, block_n, warps in _shapes(product, access):
        tile = Tile(block_m, block_n, _step_length(product, item_size, access), warps, 1)
        tile = tile._replace(
            halves=_finishes_in_halves(tile, product, access, machine),
            through_registers=_goes_through_registers(tile, item_size, access, machine),
            register_level=_register_level(product, item_size, access, machine),
        )
        # A pipeline deeper than the loop is long only takes shared memory from other programs.
        for stages in range(min(MAX_STAGES, tile.steps(product)), 0, -1):
            tile = tile._replace(num_stages=stages)
            if tile.shared_bytes(item_size, access.prologue) <= machine.shared_bytes:
                fits.append(tile)
                break
    return fits


def choose_tile(product: Product, item_size: int, access: Access, machine: Machine) -> Tile:
    """The candidate with the fewest modelled clocks; the first of the table where several are equal."""
    per_clock = _multiplications(item_size, access.precision, machine)

    def clocks(tile: Tile) -> float:
        parts = choose_parts(product, tile, item_size, machine) if product.over_pixels else 1
        waves = _divide_up(tile.tiles(product) * product.copies * parts, machine.processors)
        multiply = tile.block_m * tile.block_n * tile.block_k / per_clock
        read = (tile.block_m + tile.block_n) * tile.block_k * item_size / BYTES_PER_CLOCK
        written = 8 if product.over_pixels else item_size  # a part is float32, and read again
        write = tile.block_m * tile.block_n * written / BYTES_PER_CLOCK
        return waves * (_divide_up(tile.steps(product), parts) * max(multiply, read) + write) + LATENCY

    return min(candidates(product, item_size, access, machine), key=clocks)


def choose_parts(product: Product, tile: Tile, item_size: int, machine: Machine) -> int:
    """Into how many parts a sum over pixels is cut: to fill the machine, but not at the price of traffic."""
    to_fill = machine.processors // (tile.tiles(product) * product.copies)
    operands = product.length * (product.rows + product.columns) * item_size
    part = 8 * product.rows * product.columns
    return max(1, min(to_fill, operands // (PARTS_SHARE * part), tile.steps(product) // LEAST_STEPS))


def programs_per_processor(capability: int, registers: int, shared_bytes: int, num_warps: int) -> int:
    """Occupancy: programs that one multiprocessor holds at a time."""
    limits = LIMITS[capability]
    # Registers are handed out to a warp 256 at a time; a program's shared memory comes with 1 KB of the
    # system's.
    registers_per_warp = _divide_up(registers * 32, 256) * 256
    by_registers = 65536 // registers_per_warp // num_warps
    by_shared = limits.shared_bytes // (_divide_up(shared_bytes, 128) * 128 + 1024)
    return min(by_registers, by_shared, limits.warps // num_warps, limits.programs)


def _shapes(product: Product, access: Access) -> tuple[tuple[int, int, int], ...]:
    if not access.vectors:
        return GATHER_SHAPES
    if access.precision == "ieee":
        # Of sums over pixels both operands are turned round in registers.
        return GATHER_SHAPES if product.over_pixels else IEEE_SHAPES
    return SHAPES


def _finishes_in_halves(tile: Tile, product: Product, access: Access, machine: Machine) -> bool:
    """Products that end in tensor memory: a thread gets a whole row of it, and needs what the epilogue knows
    of every column beside it. All columns at once spill."""
    in_tensor_memory = machine.capability // 10 == 10 and access.precision != "ieee"
    return in_tensor_memory and product.kind == "conv2d" and tile.accumulators > 32


def _goes_through_registers(tile: Tile, item_size: int, access: Access, machine: Machine) -> bool:
    """Products of four warps in TF32 take operands whose summands lie side by side in shared memory, while
    those of 16 bits may lie either way. Where they lie apart in global memory (weights of an input gradient,
    both operands of a weight's), the compiler would copy 4 bytes at a time to turn them round. Through
    registers they are copied by 16 bytes, and turned on the way from shared memory to shared memory."""
    by_four_warps = machine.capability // 10 in (9, 10) and tile.block_m >= 64
    return by_four_warps and item_size == 4 and access.precision != "ieee" and access.vectors


def _register_level(product: Product, item_size: int, access: Access, machine: Machine) -> int:
    number = access.precision if item_size == 4 else "16 bits"
    few = (product.kind, number, access.vectors, machine.capability) in LEVEL_5_SPILLS
    return HIGHER_LEVEL if few else REGISTER_LEVEL


def _step_length(product: Product, item_size: int, access: Access) -> int:
    longest = PIXEL_STEP * 2 // item_size if product.over_pixels else STEP_BYTES // item_size
    if not access.vectors:
        longest = GATHER_STEP
    if access.precision == "ieee":
        longest = IEEE_STEP
    return min(longest, max(16, _next_power_of_2(product.reduction)))


def _multiplications(item_size: int, precision: str, machine: Machine) -> int:
    """Multiply-adds per clock and multiprocessor (vendor's peak rates)."""
    if precision == "ieee":
        return 64 if machine.capability == 80 else 128
    return TENSOR_CORES.get(machine.capability, 512) // (item_size // 2)


def _next_power_of_2(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _divide_up(value: int, by: int) -> int:
    return -(-value // by)
