"""Gradients of the Triton convolution in Triton's interpreter, against float64.

Needs TRITON_INTERPRET=1 before the first import: test_interpreter.py runs it in its own process.
"""

import mmap

import numpy as np
import pytest
import torch
from conv2d_cases import (
    DTYPES,
    ROUNDING,
    SHAPES,
    Shape,
    after_prologue,
    assert_within,
    gradients,
    gradients_and_bounds,
    make_gradient_operands,
    make_prologue,
)

from cnnfast.triton.blocks import INTERPRETED
from cnnfast.triton.conv2d_input_grad import conv2d_input_grad
from cnnfast.triton.conv2d_weight_grad import conv2d_weight_grad
from cnnfast.triton.tiles import SHAPES as TILE_SHAPES
from cnnfast.triton.tiles import Tile

assert INTERPRETED, "run with TRITON_INTERPRET=1"

FEW = (SHAPES[2], SHAPES[7], SHAPES[8], SHAPES[12], SHAPES[14], SHAPES[15])
ODD = Shape((2, 17, 5, 4), (9, 17, 3, 3), {"padding": 1})
GROUPED = Shape((2, 12, 5, 4), (8, 3, 3, 3), {"padding": 1, "groups": 4})
STRIDED = Shape((2, 9, 7, 6), (11, 9, 3, 3), {"padding": 1, "stride": 2})


def check_both(shape: Shape, dtype: torch.dtype) -> None:
    t = make_gradient_operands(shape, dtype)
    (dx, dw), (dx_error, dw_error) = gradients_and_bounds(t["x"], t["w"], t["dy"], shape.options)
    output = conv2d_input_grad(t["dy"], t["w"], shape.input, **shape.options)
    assert output.dtype == dtype and output.is_contiguous(memory_format=torch.channels_last)
    assert_within(output, dx, dx_error)
    output = conv2d_weight_grad(t["dy"], t["x"], shape.weight[2:], **shape.options)
    assert output.dtype == dtype and output.is_contiguous(memory_format=torch.channels_last)
    assert_within(output, dw, dw_error)


@pytest.mark.parametrize("shape", FEW, ids=str)
def test_gradients(shape):
    check_both(shape, torch.float32)


@pytest.mark.gpu_proof
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_everywhere(shape, dtype):
    check_both(shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("shape", (ODD, STRIDED), ids=str)
def test_gradients_of_narrow_types(shape, dtype):
    check_both(shape, dtype)


TILES = tuple(Tile(m, n, k, warps, 2) for m, n, warps in TILE_SHAPES for k in (16, 64))


@pytest.mark.parametrize(
    "tile",
    [
        pytest.param(tile, marks=pytest.mark.gpu_proof if i % 5 else (), id=str(tile))
        for i, tile in enumerate(TILES)
    ],
)
@pytest.mark.parametrize("shape", (ODD, STRIDED), ids=str)
def test_gradients_with_every_tile(shape, tile):
    t = make_gradient_operands(shape, torch.float32)
    (dx, dw), (dx_error, dw_error) = gradients_and_bounds(t["x"], t["w"], t["dy"], shape.options)
    assert_within(conv2d_input_grad(t["dy"], t["w"], shape.input, **shape.options, tile=tile), dx, dx_error)
    for parts in (1, 3):
        output = conv2d_weight_grad(t["dy"], t["x"], (3, 3), **shape.options, tile=tile, parts=parts)
        assert_within(output, dw, dw_error)


@pytest.mark.parametrize("tile", (Tile(64, 32, 16, 4, 2), Tile(32, 64, 32, 4, 2)), ids=str)
def test_gradients_of_several_tiles_of_channels(tile):
    """With 32 columns a tile of the weight is part of one tap, with 64 it spans two."""
    shape = Shape((1, 40, 5, 4), (70, 40, 3, 3), {"padding": 1})
    t = make_gradient_operands(shape, torch.float32)
    (dx, dw), (dx_error, dw_error) = gradients_and_bounds(t["x"], t["w"], t["dy"], shape.options)
    assert_within(conv2d_input_grad(t["dy"], t["w"], shape.input, **shape.options, tile=tile), dx, dx_error)
    output = conv2d_weight_grad(t["dy"], t["x"], (3, 3), **shape.options, tile=tile)
    assert_within(output, dw, dw_error)


def test_input_grad_of_a_phase_without_pixels_divides_by_nothing():
    shape = Shape((2, 3, 2, 1), (4, 3, 1, 1), {"stride": 3})
    t = make_gradient_operands(shape, torch.float32)
    (dx, _), (error, _) = gradients_and_bounds(t["x"], t["w"], t["dy"], shape.options)
    with np.errstate(divide="raise"):
        output = conv2d_input_grad(t["dy"], t["w"], shape.input, **shape.options)
    assert_within(output, dx, error)


@pytest.mark.parametrize("prologue", (False, True), ids=("plain", "prologue"))
@pytest.mark.parametrize("shape", (ODD, STRIDED), ids=str)
def test_gradients_through_registers(shape, prologue):
    """What TF32 does on newer chips must change no bit."""
    t = make_gradient_operands(shape, torch.float32)
    before = make_prologue(shape.input[1], torch.float32, "cpu") if prologue else {}
    for_input = before | ({"input": t["x"]} if prologue else {})
    for_weight = before | ({"pre_activation": "relu"} if prologue else {})
    plain = Tile(32, 32, 16, 2, 2)
    turned = plain._replace(through_registers=True)
    dx, same_dx = (
        conv2d_input_grad(t["dy"], t["w"], shape.input, **shape.options, **for_input, tile=tile)
        for tile in (plain, turned)
    )
    dw, same_dw = (
        conv2d_weight_grad(t["dy"], t["x"], (3, 3), **shape.options, **for_weight, tile=tile)
        for tile in (plain, turned)
    )
    assert torch.equal(dx, same_dx) and torch.equal(dw, same_dw)


@pytest.mark.parametrize("parts", (1, 2, 5, 100))
@pytest.mark.parametrize("groups", (1, 2))
def test_weight_grad_of_any_number_of_parts(parts, groups):
    shape = Shape((3, 10, 9, 7), (4, 10 // groups, 1, 1), {"groups": groups})
    t = make_gradient_operands(shape, torch.float32)
    (_, dw), (_, error) = gradients_and_bounds(t["x"], t["w"], t["dy"], shape.options)
    options = shape.options | {"tile": Tile(32, 32, 16, 2, 1), "parts": parts}
    output = conv2d_weight_grad(t["dy"], t["x"], (1, 1), **options)
    assert_within(output, dw, error)
    assert torch.equal(output, conv2d_weight_grad(t["dy"], t["x"], (1, 1), **options))


LAYOUTS = {
    "nchw": lambda t: t.contiguous(),
    "channel_slice": lambda t: torch.cat([t, t + 1, t], 1).contiguous(memory_format=torch.channels_last)[
        :, : t.shape[1]
    ],
    "half": lambda t: torch.cat([t, t], 1).contiguous(memory_format=torch.channels_last)[:, : t.shape[1]],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda t: t[:1, :1, :1, :1].expand(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ("dy", "w", "x"))
def test_gradients_read_every_layout(name, layout):
    t = make_gradient_operands(STRIDED, torch.float32)
    t[name] = LAYOUTS[layout](t[name])
    (dx, dw), (dx_error, dw_error) = gradients_and_bounds(t["x"], t["w"], t["dy"], STRIDED.options)
    assert_within(conv2d_input_grad(t["dy"], t["w"], STRIDED.input, **STRIDED.options), dx, dx_error)
    assert_within(conv2d_weight_grad(t["dy"], t["x"], (3, 3), **STRIDED.options), dw, dw_error)


@pytest.mark.parametrize("shape", (ODD, STRIDED), ids=str)
def test_input_grad_adds_into_its_slice_and_writes_nothing_else(shape):
    """The channels of a dense block that a layer has read: their gradient grows where it lies."""
    t = make_gradient_operands(shape, torch.float32)
    (dx, _), (error, _) = gradients_and_bounds(t["x"], t["w"], t["dy"], shape.options)
    n, c, h, w = shape.input
    memory = torch.full((n * h * w * (c + 8) + 50,), torch.nan)
    buffer = memory[: n * h * w * (c + 8)].view(n, h, w, c + 8).permute(0, 3, 1, 2)
    before = torch.randn(shape.input, generator=torch.Generator().manual_seed(2))
    buffer[:, 3 : 3 + c] = before
    target = buffer[:, 3 : 3 + c]
    result = conv2d_input_grad(
        t["dy"], t["w"], shape.input, **shape.options, residual=target, out=buffer, out_channel_offset=3
    )
    assert result.data_ptr() == target.data_ptr()
    assert_within(target, dx + before.double(), error)
    assert memory.isnan().sum() == memory.numel() - result.numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", (ODD, STRIDED, GROUPED), ids=str)
def test_gradients_behind_a_prologue(shape, dtype):
    """Input and residual are slices, each with a pixel stride of its own."""
    t = make_gradient_operands(shape, dtype)
    random = torch.Generator().manual_seed(4)
    residual = LAYOUTS["channel_slice"](torch.randn(shape.input, generator=random).to(dtype))
    x = LAYOUTS["half"](t["x"])
    prologue = make_prologue(shape.input[1], torch.float32, "cpu")
    a, terms = after_prologue(t["x"], prologue, relu=True)
    (da, dw), (da_error, _) = gradients_and_bounds(a, t["w"], t["dy"], shape.options)
    before = {"input": x, "residual": residual} | prologue
    output = conv2d_input_grad(t["dy"], t["w"], shape.input, **shape.options, **before)
    assert_within(output, da * (a > 0) + residual.double(), da_error + 1e-6 * residual.double().abs())
    _, bound = gradients(terms, t["w"], t["dy"].abs(), shape.options)
    output = conv2d_weight_grad(t["dy"], x, (3, 3), **shape.options, **prologue, pre_activation="relu")
    assert_within(output, dw, bound * (2e-6 + ROUNDING[dtype]))


def test_input_grad_stops_where_relu_was_at_zero():
    """Integers: a sum of exactly 0 is as common as any other."""
    random = torch.Generator().manual_seed(3)
    t = make_gradient_operands(ODD, torch.float32)
    x = torch.randint(-2, 3, ODD.input, generator=random).float()
    prologue = {"pre_scale": torch.ones(17), "pre_shift": torch.arange(17.0) % 3 - 1}
    a = torch.relu(x + prologue["pre_shift"][:, None, None])
    output = conv2d_input_grad(t["dy"], t["w"], ODD.input, **ODD.options, input=x, **prologue)
    assert (output[a == 0] == 0).all() and (output[a > 0] != 0).all()


def test_input_grad_is_zero_where_nothing_reads():
    shape = Shape((1, 3, 7, 7), (4, 3, 1, 1), {"stride": 3})
    t = make_gradient_operands(shape, torch.float32)
    output = conv2d_input_grad(t["dy"], t["w"], shape.input, stride=3)
    read = torch.zeros(7, 7, dtype=torch.bool)
    read[::3, ::3] = True
    assert (output[:, :, ~read] == 0).all() and (output[:, :, read] != 0).all()


def test_gradients_keep_nan_and_infinity_where_they_are_read():
    t = make_gradient_operands(ODD, torch.float32)
    t["dy"][0, 4, 2, 1] = torch.nan
    dx = conv2d_input_grad(t["dy"], t["w"], ODD.input, padding=1)
    wanted, _ = gradients(t["x"], t["w"], t["dy"], ODD.options)
    assert torch.equal(dx.isnan(), wanted.isnan())
    dw = conv2d_weight_grad(t["dy"], t["x"], (3, 3), padding=1)
    assert dw[4].isnan().all() and dw.isnan().sum() == 17 * 9


def test_gradients_of_an_empty_batch():
    weight = torch.zeros(4, 3, 3, 3)
    assert conv2d_input_grad(torch.zeros(0, 4, 3, 3), weight, (0, 3, 5, 5)).shape == (0, 3, 5, 5)
    dw = conv2d_weight_grad(torch.zeros(0, 4, 3, 3), torch.zeros(0, 3, 5, 5), (3, 3))
    assert torch.equal(dw, torch.zeros(4, 3, 3, 3))


@pytest.mark.parametrize("where", ("grad_output", "out", "input"))
def test_gradients_with_element_offsets_above_32_bits(where):
    """Two pixels 2³⁰ + 8 elements apart, in memory that is never touched between them."""
    stride = 2**30 + 8
    reserve = 0x4000  # MAP_NORESERVE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (2 * stride + 64), flags=flags), dtype=torch.float16)
    wide = memory.as_strided((1, 16, 1, 3), (3 * stride, 1, 3 * stride, stride))
    shape = Shape((1, 16, 1, 3), (16, 16, 1, 1))
    t = make_gradient_operands(shape, torch.float16)
    (dx, dw), (dx_error, dw_error) = gradients_and_bounds(t["x"], t["w"], t["dy"], {})
    if where == "out":
        assert_within(conv2d_input_grad(t["dy"], t["w"], shape.input, out=wide), dx, dx_error)
        return
    name = "dy" if where == "grad_output" else "x"
    wide.copy_(t[name])
    t[name] = wide
    assert_within(conv2d_weight_grad(t["dy"], t["x"], (1, 1)), dw, dw_error)
    if where == "grad_output":
        assert_within(conv2d_input_grad(t["dy"], t["w"], shape.input), dx, dx_error)


INPUT_ERRORS = {
    "grad_output has shape (2, 8, 4, 4), needs (2, 8, 4, 3)": {"grad_output": torch.zeros(2, 8, 4, 4)},
    "input has 4 channels, but weight (8, 3, 3, 3) with groups=1 needs 3": {"input_size": (2, 4, 6, 5)},
    "input has shape (3, 6, 5), needs 4 dimensions": {"input_size": (3, 6, 5)},
    "weight has dtype torch.float16, but grad_output has torch.float32": {
        "weight": torch.zeros(8, 3, 3, 3).half()
    },
    "grad_output requires grad": {"grad_output": torch.zeros(2, 8, 4, 3, requires_grad=True)},
    "input goes with pre_scale and pre_shift": {"input": torch.zeros(2, 3, 6, 5)},
    "input has shape (2, 3, 6, 6), needs (2, 3, 6, 5)": {
        "input": torch.zeros(2, 3, 6, 6),
        "pre_scale": torch.ones(3),
        "pre_shift": torch.ones(3),
    },
    "residual has shape (2, 3, 6, 1), needs (2, 3, 6, 5)": {"residual": torch.zeros(2, 3, 6, 1)},
    "channels 1 to 4 lie outside out (2, 3, 6, 5)": {
        "out": torch.zeros(2, 3, 6, 5).to(memory_format=torch.channels_last),
        "out_channel_offset": 1,
    },
    "out_channel_offset is 2, but out is absent": {"out_channel_offset": 2},
    "stride is (0, 0), needs at least 1": {"stride": 0},
}


@pytest.mark.parametrize("message", INPUT_ERRORS)
def test_input_grad_rejects(message):
    arguments = {"grad_output": torch.zeros(2, 8, 4, 3), "weight": torch.ones(8, 3, 3, 3)}
    arguments |= {"input_size": (2, 3, 6, 5)} | INPUT_ERRORS[message]
    with pytest.raises(RuntimeError) as error:
        conv2d_input_grad(**arguments)
    assert str(error.value).startswith("cnnfast.triton.conv2d_input_grad: ") and message in str(error.value)


def test_input_grad_rejects_an_output_over_what_it_reads():
    buffer = torch.zeros(2, 12, 5, 5).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="out channels 0 to 9 overlap grad_output in memory"):
        conv2d_input_grad(buffer[:, 8:], torch.zeros(4, 9, 3, 3), (2, 9, 5, 5), padding=1, out=buffer)
    conv2d_input_grad(buffer[:, 9:], torch.zeros(3, 9, 3, 3), (2, 9, 5, 5), padding=1, out=buffer)


WEIGHT_ERRORS = {
    "grad_output has shape (2, 8, 4, 4), needs (2, 8, 4, 3)": {"grad_output": torch.zeros(2, 8, 4, 4)},
    "input has 3 channels, not divisible by groups=2": {"groups": 2},
    "kernel_size is (3,), needs two numbers": {"kernel_size": (3,)},
    "weight (8, 3, 0, 3) has a dimension of size 0": {"kernel_size": (0, 3)},
    "input has dtype torch.float16, but grad_output has torch.float32": {
        "input": torch.zeros(2, 3, 6, 5).half()
    },
    "groups is 0, needs to be at least 1": {"groups": 0},
    'pre_activation is "relu", but pre_scale': {"pre_activation": "relu"},
}


@pytest.mark.parametrize("message", WEIGHT_ERRORS)
def test_weight_grad_rejects(message):
    arguments = {"grad_output": torch.zeros(2, 8, 4, 3), "input": torch.zeros(2, 3, 6, 5)}
    arguments |= {"kernel_size": (3, 3)} | WEIGHT_ERRORS[message]
    with pytest.raises(RuntimeError) as error:
        conv2d_weight_grad(**arguments)
    assert str(error.value).startswith("cnnfast.triton.conv2d_weight_grad: ") and message in str(error.value)
