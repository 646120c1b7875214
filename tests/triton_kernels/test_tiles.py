"""The choice of tiles: what fits, and that the model prefers what it should."""

import itertools

import pytest

from cnnfast.triton.conv2d_arguments import Geometry
from cnnfast.triton.tiles import Access, Machine, Tile, candidates, choose_tile

A100 = Machine(processors=108, shared_bytes=163 * 1024, capability=80)
ADA = Machine(processors=128, shared_bytes=99 * 1024, capability=89)
OLD = Machine(processors=40, shared_bytes=48 * 1024, capability=75)
TENSOR_CORES, GATHER, IEEE = Access(True, "tf32"), Access(False, "tf32"), Access(True, "ieee")


def conv(batch, size, in_channels, out_channels, kernel=3, groups=1) -> Geometry:
    padding = (kernel // 2, kernel // 2)
    channels = (in_channels, out_channels)
    return Geometry(batch, size, size, size, size, *channels, kernel, kernel, (1, 1), padding, (1, 1), groups)


SIZES = (
    conv(16, 56, 64, 128),
    conv(1, 7, 512, 512),
    conv(1, 28, 1, 6, kernel=5),
    conv(4, 14, 3, 3, groups=9),
)


@pytest.mark.parametrize("machine", (A100, ADA, OLD), ids=("a100", "ada", "old"))
@pytest.mark.parametrize("access", (TENSOR_CORES, GATHER, IEEE), ids=("tensor_cores", "gather", "ieee"))
def test_tiles_fit_the_machine(access, machine):
    for sizes, item_size in itertools.product(SIZES, (2, 4)):
        tiles = candidates(sizes, item_size, access, machine)
        assert tiles and choose_tile(sizes, item_size, access, machine) in tiles
        for tile in tiles:
            assert tile.shared_bytes(item_size) <= machine.shared_bytes
            assert 1 <= tile.num_stages <= tile.steps(sizes)
            accumulators = tile.block_m * tile.block_n // (32 * tile.num_warps)
            assert accumulators <= (64 if access == TENSOR_CORES else 32)
            assert tile.block_k >= 16, "the least that a tensor core multiplies"


def test_tiles_are_large_for_large_images_and_small_for_small_ones():
    large = choose_tile(conv(32, 56, 256, 256), 2, TENSOR_CORES, A100)
    small = choose_tile(conv(1, 7, 512, 512), 2, TENSOR_CORES, A100)
    assert large.block_m * large.block_n == 128 * 128
    assert small.block_m * small.block_n <= 64 * 64


def test_tiles_do_not_waste_channels():
    few = choose_tile(conv(32, 56, 64, 32), 2, TENSOR_CORES, A100)
    assert few.block_n == 32


def test_steps_span_taps_only_where_channels_are_few():
    tile = Tile(64, 64, 32, 4, 2)
    assert not tile.spans_taps(conv(1, 8, 64, 8)) and tile.steps(conv(1, 8, 64, 8)) == 18
    assert not tile.spans_taps(conv(1, 8, 40, 8)) and tile.steps(conv(1, 8, 40, 8)) == 18
    assert tile.spans_taps(conv(1, 8, 3, 8)) and tile.steps(conv(1, 8, 3, 8)) == 1
    assert not tile.spans_taps(conv(1, 8, 3, 8, kernel=1)) and tile.steps(conv(1, 8, 3, 8, kernel=1)) == 1
