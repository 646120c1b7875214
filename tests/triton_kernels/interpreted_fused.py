"""Prologue and statistics of the Triton convolution in Triton's interpreter, against float64.

Needs TRITON_INTERPRET=1 before the first import: test_interpreter.py runs it in its own process.
"""

import pytest
import torch
import torch.nn.functional as F
from conv2d_cases import (
    DTYPES,
    ROUNDING,
    SHAPES,
    Shape,
    after_prologue,
    assert_close,
    assert_within,
    make_operands,
    make_prologue,
)

from cnnfast.triton.blocks import INTERPRETED
from cnnfast.triton.conv2d import conv2d, conv2d_statistics
from cnnfast.triton.statistics import ROWS, combine
from cnnfast.triton.tiles import Tile

assert INTERPRETED, "run with TRITON_INTERPRET=1"

BORDERED = Shape((2, 9, 5, 4), (7, 9, 3, 3), {"padding": 2})
GROUPED = Shape((2, 12, 5, 5), (8, 3, 3, 3), {"padding": 1, "stride": 2, "groups": 4})
POINTWISE = Shape((2, 24, 5, 5), (17, 24, 1, 1))


def check_prologue(shape: Shape, dtype: torch.dtype, relu: bool, parameter_dtype: torch.dtype) -> None:
    operands = make_operands(shape, dtype, "cpu")
    del operands["scale"], operands["bias"], operands["residual"]
    prologue = make_prologue(shape.input[1], parameter_dtype, "cpu")
    output = conv2d(**operands, **shape.options, **prologue, pre_activation="relu" if relu else "none")
    a, terms = after_prologue(operands["input"], prologue, relu)
    w = operands["weight"].double()
    bound = F.conv2d(terms, w.abs(), **shape.options) * (2e-6 + ROUNDING[dtype])
    assert_within(output, F.conv2d(a, w, **shape.options), bound)


@pytest.mark.parametrize("relu", (False, True), ids=("affine", "relu"))
@pytest.mark.parametrize("shape", (BORDERED, GROUPED, POINTWISE), ids=str)
def test_prologue(shape, relu):
    check_prologue(shape, torch.float32, relu, torch.float32)


@pytest.mark.gpu_proof
@pytest.mark.parametrize("parameter_dtype", (torch.float32, None), ids=("float32_parameters", "narrow"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", (*SHAPES, BORDERED, GROUPED, POINTWISE), ids=str)
def test_prologue_everywhere(shape, dtype, parameter_dtype):
    check_prologue(shape, dtype, True, parameter_dtype or dtype)


def test_prologue_lets_nan_through():
    operands = make_operands(BORDERED, torch.float32, "cpu")
    operands["input"][0, 3, 2, 2] = torch.nan
    prologue = make_prologue(9, torch.float32, "cpu")
    output = conv2d(operands["input"], operands["weight"], padding=2, **prologue, pre_activation="relu")
    assert output.isnan().sum() == 9 * 7 and output[0, :, 2:5, 2:5].isnan().all()


def check_statistics(output: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> None:
    values = output.double().transpose(0, 1).flatten(1)
    assert mean.dtype == var.dtype == torch.float32
    wanted = values.mean(1)
    assert ((mean - wanted).abs() <= 1e-6 * values.abs().mean(1)).all()
    # Means of parts are kept in float32: far from zero their last digit is what the variance is off by.
    relative = 1e-5 + 2.0**-24 * (wanted.abs() / values.std(1, correction=0))
    wanted = values.var(1, correction=0)
    assert ((var - wanted).abs() <= relative * wanted).all(), (var, wanted)


TILES = {"chosen": None, "small": Tile(32, 32, 16, 2, 1), "halves": Tile(32, 32, 16, 2, 1, halves=True)}


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", (BORDERED, GROUPED), ids=str)
def test_statistics(shape, dtype, tile):
    operands = make_operands(shape, dtype, "cpu")
    del operands["scale"]
    output, mean, var = conv2d_statistics(**operands, **shape.options, tile=tile)
    assert_close(output, operands, shape.options)
    check_statistics(output, mean, var)


def test_statistics_far_from_zero():
    """A mean a thousand times the deviation: a sum of squares around zero would leave no correct digit."""
    operands = make_operands(POINTWISE, torch.float32, "cpu")
    bias = torch.full((17,), 5000.0)
    output, mean, var = conv2d_statistics(
        operands["input"], operands["weight"], bias, tile=Tile(32, 32, 16, 2, 1)
    )
    check_statistics(output, mean, var)


def test_statistics_keep_what_the_sum_of_a_tile_rounds_away():
    """Numbers near 2^20 in steps of 1 / 8: their sum in float32 is off by several units of its last digit."""
    random = torch.Generator().manual_seed(0)
    values = 2.0**20 + torch.randint(-32, 33, (1, 32, 8, 16), generator=random) / 8
    identity = torch.eye(32)[:, :, None, None]
    output, mean, var = conv2d_statistics(values, identity, tile=Tile(128, 32, 32, 4, 1))
    assert torch.equal(output, values)
    exact = values.double().transpose(0, 1).flatten(1)
    assert ((mean - exact.mean(1)).abs() <= 1 / 16).all(), "half of the last digit"
    torch.testing.assert_close(var.double(), exact.var(1, correction=0), rtol=1e-5, atol=0)


def test_statistics_of_a_slice_behind_a_prologue():
    operands = make_operands(BORDERED, torch.float32, "cpu")
    prologue = make_prologue(9, torch.float32, "cpu") | {"pre_activation": "relu"}
    buffer = torch.full((2, 21, 7, 6), torch.nan).to(memory_format=torch.channels_last)
    options = {"padding": 2, "out": buffer, "out_channel_offset": 5} | prologue
    output, mean, var = conv2d_statistics(operands["input"], operands["weight"], **options)
    assert output.data_ptr() == buffer[:, 5:].data_ptr() and buffer.isnan().sum() == 14 * 2 * 7 * 6
    plain = conv2d(operands["input"], operands["weight"], padding=2, **prologue)
    assert torch.equal(output, plain)
    check_statistics(output, mean, var)


def test_statistics_of_nothing_are_nan():
    output, mean, var = conv2d_statistics(torch.zeros(0, 3, 5, 5), torch.zeros(4, 3, 3, 3))
    assert output.shape == (0, 4, 3, 3) and mean.isnan().all() and var.isnan().all()
    assert mean.shape == var.shape == (4,)


def test_statistics_keep_nan_in_its_channel():
    operands = make_operands(POINTWISE, torch.float32, "cpu")
    operands["residual"][1, 5, 0, 0] = torch.nan
    _, mean, var = conv2d_statistics(operands["input"], operands["weight"], residual=operands["residual"])
    assert mean.isnan().nonzero().tolist() == [[5]] and var.isnan().nonzero().tolist() == [[5]]


def test_statistics_of_an_infinity_are_those_of_torch():
    operands = make_operands(POINTWISE, torch.float32, "cpu")
    operands["residual"][1, 5, 0, 0] = torch.inf
    _, mean, var = conv2d_statistics(operands["input"], operands["weight"], residual=operands["residual"])
    assert mean.isinf().nonzero().tolist() == [[5]] and not mean.isnan().any()
    assert var.isnan().nonzero().tolist() == [[5]]


def test_combine_keeps_what_its_sum_rounds_away():
    """Means near 2^20 in steps of 1 / 8, as in a tile."""
    random = torch.Generator().manual_seed(0)
    means = 2.0**20 + torch.randint(-32, 33, (ROWS, 33), generator=random) / 8
    mean, var = combine(torch.stack([means, torch.zeros_like(means)], 1), 1, ROWS)
    assert ((mean - means.double().mean(0)).abs() <= 1 / 16).all()
    torch.testing.assert_close(var.double(), means.double().var(0, correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("channels", (1, 33))
@pytest.mark.parametrize(
    "parts", (1, 2, ROWS, ROWS + 1, pytest.param(ROWS**2 + 1, marks=pytest.mark.gpu_proof))
)
@pytest.mark.parametrize("part_pixels", (1, 7))
def test_combine(parts, channels, part_pixels):
    """One, two and three levels, the last part of one pixel."""
    random = torch.Generator().manual_seed(parts)
    pixels = (parts - 1) * part_pixels + 1
    values = 100 + torch.randn(channels, pixels, generator=random)
    groups = values.double().split(part_pixels, 1)
    means = torch.stack([group.mean(1) for group in groups])
    squares = torch.stack([group.var(1, correction=0) * group.shape[1] for group in groups])
    mean, var = combine(torch.stack([means, squares], 1).float(), part_pixels, pixels)
    wanted = values.double().mean(1)
    assert ((mean - wanted).abs() <= 2e-7 * wanted.abs()).all()
    wanted = values.double().var(1, correction=0)
    assert ((var - wanted).abs() <= 2e-5 * wanted + 1e-9).all()


ERRORS = {
    "pre_scale and pre_shift go together": {"pre_scale": torch.ones(3)},
    'pre_activation is "relu", but pre_scale and pre_shift are absent': {"pre_activation": "relu"},
    'pre_activation is "sigmoid", needs one of none, relu': {"pre_activation": "sigmoid"},
    "pre_shift has shape (2,), needs (3,)": {"pre_scale": torch.ones(3), "pre_shift": torch.ones(2)},
    "pre_scale has dtype torch.float64, but input has torch.float32": {"pre_scale": torch.ones(3).double()},
}


@pytest.mark.parametrize("message", ERRORS)
@pytest.mark.parametrize("function", (conv2d, conv2d_statistics), ids=("conv2d", "conv2d_statistics"))
def test_prologue_rejects(function, message):
    with pytest.raises(RuntimeError) as error:
        function(torch.zeros(2, 3, 6, 5), torch.ones(8, 3, 3, 3), **ERRORS[message])
    assert str(error.value).startswith(f"cnnfast.triton.{function.__name__}: ")
    assert message in str(error.value)
