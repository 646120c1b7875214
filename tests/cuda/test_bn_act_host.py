"""The body of the CUDA kernel, compiled for the host under address and undefined-behaviour sanitizers.

Every thread of every block runs in turn in a shuffled order; the outputs are full of NaN beforehand.
"""

import itertools
import subprocess

import pytest
import torch
from bn_act_cases import ACTIVATIONS, DTYPES, SHAPES, Case, assert_close, make_case, reference
from bn_act_host import build, compiler, run

GRIDS = ((0, 0), (1, 1), (1, 32), (3, 5), (2, 64), (7, 33))

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler (CXX, g++)")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("bn_act_host"), "bn_act_main")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bn_act_matches_float64_for_every_grid(program, dtype, activation):
    cases = [
        make_case(shape, dtype, seed=i, activation=activation, blocks=blocks, threads=threads)
        for i, (shape, (blocks, threads)) in enumerate(itertools.product(SHAPES, GRIDS))
    ]
    for case, result in zip(cases, run(program, cases), strict=True):
        assert result.lanes == 16 // case.input.element_size()
        assert_close(case, result.output)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bn_act_without_optional_arguments(program, dtype):
    cases = [make_case(shape, dtype, optional=False, blocks=2, threads=7) for shape in SHAPES]
    for case, result in zip(cases, run(program, cases), strict=True):
        assert_close(case, result.output)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bn_act_unaligned_buffers_take_single_elements(program, dtype):
    cases = [make_case((2, 33, 3, 3), dtype, misalignment=offset, blocks=3, threads=5) for offset in (1, 3)]
    for case, result in zip(cases, run(program, cases), strict=True):
        assert result.lanes == 1
        assert_close(case, result.output)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bn_act_same_bits_for_every_order_of_threads(program, dtype):
    cases = []
    for seed in range(4):
        case = make_case((2, 33, 5, 5), dtype, activation="relu", blocks=3, threads=17)
        case.seed = seed
        cases.append(case)
    outputs = [result.output for result in run(program, cases)]
    for output in outputs[1:]:
        assert torch.equal(output, outputs[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bn_act_keeps_nan_and_inf_where_they_are(program, dtype, activation):
    case = make_case((1, 8, 4, 4), dtype, activation=activation)
    case.input[0, 1, 2, 3], case.input[0, 5, 0, 0], case.input[0, 6, 1, 1] = torch.nan, torch.inf, -torch.inf
    output = run(program, [case])[0].output.double()
    expected = reference(case)
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2, equal_nan=True)
    assert output.isnan().sum() == 1 and output[0, 1, 2, 3].isnan()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_host_conversions_keep_every_16_bit_number(program, dtype):
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, 256, 256)
    case = Case(input=numbers, mean=torch.zeros(1), var=torch.ones(1), eps=0.0)
    output = run(program, [case])[0].output
    assert torch.equal(output.isnan(), numbers.isnan())
    assert torch.equal(output[~output.isnan()], numbers[~numbers.isnan()])


def test_bn_act_grid_lets_threads_keep_their_channels(program):
    """The loop's step (blocks × 256 threads × 4 lanes) is a multiple of the channels where that can be."""
    cases = [make_case((1, channels, 64, 64), torch.float32) for channels in (12, 20, 33, 96)]
    for case, result in zip(cases, run(program, cases), strict=True):
        assert 1 < result.blocks <= 16, "4 processors with 4 blocks each"
        repeats = result.blocks * 256 * 4 % case.input.shape[1] == 0
        assert repeats == (case.input.shape[1] != 33), "33 channels would need 33 blocks"
        assert_close(case, result.output)


def test_bn_act_element_offsets_above_32_bits(tmp_path):
    program = build(tmp_path, "bn_act_offsets_main")
    result = subprocess.run([program], capture_output=True, text=True)
    if result.returncode == 2:
        pytest.skip("8 GiB of address space cannot be reserved: " + result.stderr.strip())
    assert result.returncode == 0, result.stderr
