"""The choice of tiles: what fits, and that the model prefers what it should."""

import itertools

import pytest

from cnnfast.triton.conv2d_arguments import Geometry
from cnnfast.triton.tiles import (
    LIMITS,
    MACHINES,
    Access,
    Machine,
    Tile,
    candidates,
    choose_parts,
    choose_tile,
    forward_product,
    input_grad_product,
    programs_per_processor,
    weight_grad_product,
)

OLD = Machine(processors=40, shared_bytes=48 * 1024, capability=75)
TENSOR_CORES, GATHER, IEEE = Access(True, "tf32"), Access(False, "tf32"), Access(True, "ieee")
PROLOGUE = Access(True, "tf32", prologue=True)
PRODUCTS = (forward_product, input_grad_product, weight_grad_product)


def conv(batch, size, in_channels, out_channels, kernel=3, groups=1, stride=1) -> Geometry:
    padding = kernel // 2
    out = (size + 2 * padding - kernel) // stride + 1
    return Geometry(
        *(batch, size, size, out, out, in_channels, out_channels, kernel, kernel),
        *((stride, stride), (padding, padding), (1, 1), groups),
    )


SIZES = (
    conv(16, 56, 64, 128),
    conv(1, 7, 512, 512),
    conv(1, 28, 1, 6, kernel=5),
    conv(4, 14, 3, 3, groups=9),
    conv(8, 56, 64, 128, stride=2),
    conv(32, 56, 64, 256, kernel=1),
)


@pytest.mark.parametrize("machine", (*MACHINES.values(), OLD), ids=lambda machine: str(machine.capability))
@pytest.mark.parametrize(
    "access", (TENSOR_CORES, GATHER, IEEE, PROLOGUE), ids=("cores", "gather", "ieee", "prologue")
)
def test_tiles_fit_the_machine(access, machine):
    for sizes, item_size, make in itertools.product(SIZES, (2, 4), PRODUCTS):
        product = make(sizes)
        tiles = candidates(product, item_size, access, machine)
        assert tiles and choose_tile(product, item_size, access, machine) in tiles
        for tile in tiles:
            assert tile.shared_bytes(item_size, access.prologue) <= machine.shared_bytes
            assert 1 <= tile.num_stages <= tile.steps(product)
            assert tile.accumulators <= {TENSOR_CORES: 64, PROLOGUE: 64, IEEE: 32, GATHER: 16}[access]
            assert tile.block_k >= 16, "the least that a tensor core multiplies"


def tiles_for(capability: int, make, access: Access, item_size: int) -> list[Tile]:
    return candidates(make(conv(32, 28, 128, 128)), item_size, access, MACHINES[capability])


@pytest.mark.parametrize("capability", MACHINES)
def test_results_in_tensor_memory_are_finished_in_halves(capability):
    for make, access in itertools.product(PRODUCTS, (TENSOR_CORES, IEEE)):
        halves = [tile for tile in tiles_for(capability, make, access, 4) if tile.halves]
        if capability == 100 and access is TENSOR_CORES and make is forward_product:
            assert halves and all(tile.accumulators == 64 for tile in halves)
        else:
            assert not halves


@pytest.mark.parametrize("capability", MACHINES)
def test_operands_go_through_registers_where_instructions_cannot_turn_them(capability):
    for make, access, item_size in itertools.product(PRODUCTS, (TENSOR_CORES, GATHER, IEEE), (2, 4)):
        for tile in tiles_for(capability, make, access, item_size):
            needed = capability in (90, 100) and access is TENSOR_CORES and item_size == 4
            assert tile.through_registers == (needed and tile.block_m >= 64)


def test_float32_sums_over_pixels_keep_few_accumulators():
    """Both operands of these are turned in registers."""
    for tile in tiles_for(80, weight_grad_product, IEEE, 4):
        assert tile.accumulators <= 16


def choose(sizes, make=forward_product, machine=MACHINES[80]) -> Tile:
    return choose_tile(make(sizes), 2, TENSOR_CORES, machine)


def test_tiles_are_large_for_large_images_and_small_for_small_ones():
    large, small = choose(conv(32, 56, 256, 256)), choose(conv(1, 7, 512, 512))
    assert large.block_m * large.block_n == 128 * 128
    assert small.block_m * small.block_n <= 64 * 64


def test_tiles_do_not_waste_channels():
    assert choose(conv(32, 56, 64, 32)).block_n == 32
    assert choose(conv(32, 56, 32, 64), input_grad_product).block_n == 32


def test_steps_span_taps_only_where_channels_are_few():
    tile = Tile(64, 64, 32, 4, 2)
    for channels, spans, steps in ((64, False, 18), (40, False, 18), (3, True, 1)):
        product = forward_product(conv(1, 8, channels, 8))
        assert (tile.spans_taps(product), tile.steps(product)) == (spans, steps)
    product = forward_product(conv(1, 8, 3, 8, kernel=1))
    assert not tile.spans_taps(product) and tile.steps(product) == 1


def test_products_of_a_strided_convolution():
    sizes = conv(2, 15, 3, 5, stride=2)
    assert forward_product(sizes)[:5] == (2 * 8 * 8, 5, 3, 9, 1)
    assert input_grad_product(sizes)[:5] == (113, 3, 5, 3, 4), "four phases of a quarter of pixels and taps"
    assert weight_grad_product(sizes)[:5] == (5, 27, 2 * 8 * 8, 1, 1)


def test_parts_of_the_weight_gradient_fill_the_machine_without_much_traffic():
    tile = Tile(128, 128, 64, 8, 3)
    large = weight_grad_product(conv(32, 56, 64, 64))
    small = weight_grad_product(conv(1, 4, 64, 64))
    wide = weight_grad_product(conv(32, 14, 512, 512))
    machine = MACHINES[80]
    assert choose_parts(small, tile, 2, machine) == 1, "16 pixels are not worth a second kernel's work"
    assert choose_parts(wide, tile, 2, machine) == 1, "144 tiles fill 108 processors"
    parts = choose_parts(large, tile, 2, machine)
    assert 10 < parts <= 108 // 5
    for sizes in SIZES:
        product = weight_grad_product(sizes)
        parts = choose_parts(product, tile, 2, machine)
        operands = product.length * (product.rows + product.columns) * 2
        assert parts == 1 or parts * product.rows * product.columns * 8 <= operands / 8


def test_programs_per_processor():
    """Against figures of NVIDIA's occupancy calculator."""
    assert programs_per_processor(80, 32, 0, 8) == 8, "64 warps"
    assert programs_per_processor(86, 32, 0, 8) == 6, "48 warps"
    assert programs_per_processor(80, 255, 0, 8) == 1, "255 registers are handed out as 256"
    assert programs_per_processor(80, 128, 0, 4) == 4, "registers"
    assert programs_per_processor(80, 32, 80 * 1024, 4) == 2, "shared memory, with 1 KB of the system's each"
    assert programs_per_processor(80, 32, 82 * 1024, 4) == 1
    assert programs_per_processor(86, 16, 0, 1) == 16, "programs"
    assert set(LIMITS) == set(MACHINES) == {80, 86, 89, 90, 100, 120}
