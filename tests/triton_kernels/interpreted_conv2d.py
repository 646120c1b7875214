"""The Triton convolution in Triton's interpreter, against float64.

Needs TRITON_INTERPRET=1 before the first import: test_interpreter.py runs it in its own process.
"""

import mmap

import pytest
import torch
import torch.nn.functional as F
from conv2d_cases import ACTIVATIONS, DTYPES, SHAPES, Shape, assert_close, make_operands

from cnnfast.triton.blocks import INTERPRETED
from cnnfast.triton.conv2d import conv2d
from cnnfast.triton.conv2d_arguments import geometry
from cnnfast.triton.launch import is_aligned, launch
from cnnfast.triton.tiles import GATHER_SHAPES, IEEE_SHAPES, Tile
from cnnfast.triton.tiles import SHAPES as TILE_SHAPES

assert INTERPRETED, "run with TRITON_INTERPRET=1"

ODD = Shape((2, 17, 5, 4), (33, 17, 3, 3), {"padding": 1})
TINY = Shape((2, 5, 5, 4), (7, 5, 3, 3), {"padding": 1})


SHAPES_AND_TYPES = [
    pytest.param(shape, dtype, marks=pytest.mark.gpu_proof if (i + j) % 3 else (), id=f"{shape}-{dtype}")
    for i, shape in enumerate(SHAPES)
    for j, dtype in enumerate(DTYPES)
]


@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_TYPES)
def test_conv2d_shapes(shape, dtype):
    operands = make_operands(shape, dtype, "cpu")
    output = conv2d(**operands, **shape.options, activation="relu")
    assert output.dtype == dtype and output.is_contiguous(memory_format=torch.channels_last)
    assert_close(output, operands, shape.options, "relu")


@pytest.mark.parametrize(
    "dtype", (DTYPES[0], *(pytest.param(dtype, marks=pytest.mark.gpu_proof) for dtype in DTYPES[1:])), ids=str
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("absent", ("bias", "scale", "residual", "bias scale residual"))
def test_conv2d_epilogue(absent, activation, dtype):
    operands = make_operands(TINY, dtype, "cpu")
    for name in absent.split():
        del operands[name]
    assert_close(conv2d(**operands, padding=1, activation=activation), operands, TINY.options, activation)


def test_conv2d_rounds_once():
    """Far below zero a sigmoid's relative error is that of its argument, times the argument."""
    operands = make_operands(TINY, torch.float16, "cpu")
    operands["bias"] -= 4
    assert_close(conv2d(**operands, padding=1, activation="sigmoid"), operands, TINY.options, "sigmoid")


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_conv2d_float32_parameters_of_a_narrow_input(dtype):
    operands = make_operands(TINY, dtype, "cpu")
    operands |= {"bias": operands["bias"].float() / 3, "scale": operands["scale"].float() / 3}
    assert_close(conv2d(**operands, padding=1), operands, TINY.options)


@pytest.mark.parametrize(
    "tile",
    [
        pytest.param(tile, marks=pytest.mark.gpu_proof if i % 5 else (), id=str(tile))
        for i, tile in enumerate(sorted({*TILE_SHAPES, *IEEE_SHAPES, *GATHER_SHAPES}))
    ],
)
@pytest.mark.parametrize("block_k", (16, 64))
def test_conv2d_every_tile(tile, block_k):
    """17 channels and 9 taps: with block_k 16 a step is part of one tap, with 64 it spans several."""
    operands = make_operands(ODD, torch.float32, "cpu")
    block_m, block_n, warps = tile
    output = conv2d(**operands, padding=1, tile=Tile(block_m, block_n, block_k, warps, 2))
    assert_close(output, operands, ODD.options)


HALVES = Tile(32, 32, 32, 2, 2, halves=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conv2d_finished_in_halves(dtype):
    """33 channels: the second tile has one, and its second half none."""
    operands = make_operands(ODD, dtype, "cpu")
    memory = torch.full((2 * 5 * 4 * 36 + 40,), torch.nan, dtype=dtype)
    buffer = memory[: 2 * 5 * 4 * 36].view(2, 5, 4, 36).permute(0, 3, 1, 2)
    result = conv2d(**operands, padding=1, activation="relu", out=buffer, out_channel_offset=2, tile=HALVES)
    assert_close(result, operands, ODD.options, "relu")
    assert memory.isnan().sum() == memory.numel() - result.numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", (0, 3, 12))
def test_conv2d_writes_its_slice_and_nothing_else(offset, dtype):
    shape = Shape((2, 5, 6, 5), (7, 5, 3, 3), {"padding": 1})
    operands = make_operands(shape, dtype, "cpu")
    # Room behind the last pixel and more channels than out has: out is itself a slice.
    memory = torch.full((2 * 6 * 5 * 21 + 100,), torch.nan, dtype=dtype)
    buffer = memory[: 2 * 6 * 5 * 21].view(2, 6, 5, 21).permute(0, 3, 1, 2)
    result = conv2d(**operands, padding=1, out=buffer[:, :19], out_channel_offset=offset)
    assert result.data_ptr() == buffer[:, offset:].data_ptr()
    assert_close(buffer[:, offset : offset + 7], operands, shape.options)
    assert memory.isnan().sum() == memory.numel() - result.numel()


def test_wide_accesses_need_aligned_addresses_channels_and_strides():
    """Four float32 in 16 bytes."""
    buffer = torch.zeros(1, 16, 2, 2).to(memory_format=torch.channels_last)
    image, shifted = buffer[:, :8], buffer[:, 2:10]
    strides = {"x_stride": 16, "y_stride": 8}

    def aligned(x, strides, channels=8, out_channels=8) -> bool:
        sizes = geometry("test", (1, channels, 2, 2), (out_channels, channels, 1, 1), 1, 0, 1, 1)
        return is_aligned({"x_ptr": x, "residual_ptr": None}, strides, sizes)

    assert aligned(image, strides)
    assert not aligned(shifted, strides)
    assert not aligned(image, strides | {"y_stride": 9})
    assert not aligned(image, strides, channels=6) and not aligned(image, strides, out_channels=6)
    assert aligned(image.half(), strides) and not aligned(image.half(), strides | {"x_stride": 12})


def test_conv2d_of_aligned_channels_into_a_slice_of_odd_stride():
    shape = Shape((1, 8, 3, 4), (8, 8, 1, 1))
    operands = make_operands(shape, torch.float32, "cpu")
    buffer = torch.full((1, 13, 3, 4), torch.nan).to(memory_format=torch.channels_last)
    assert_close(conv2d(**operands, out=buffer), operands, {})
    assert buffer[:, 8:].isnan().all()


def test_conv2d_reads_and_writes_one_buffer():
    """A layer of a dense block: input and output are channels of one buffer."""
    shape = Shape((2, 9, 5, 5), (4, 9, 3, 3), {"padding": 1})
    operands = make_operands(shape, torch.float32, "cpu")
    buffer = torch.full((2, 13, 5, 5), torch.nan).to(memory_format=torch.channels_last)
    buffer[:, :9] = operands["input"]
    operands["input"] = buffer[:, :9]
    conv2d(**operands, padding=1, out=buffer, out_channel_offset=9)
    assert_close(buffer[:, 9:], operands, shape.options)


def test_conv2d_adds_in_place():
    operands = make_operands(ODD, torch.float32, "cpu")
    buffer = operands["residual"].clone(memory_format=torch.channels_last)
    conv2d(**operands | {"residual": buffer}, padding=1, out=buffer)
    assert_close(buffer, operands, ODD.options)


LAYOUTS = {
    "nchw": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "channel_slice": lambda t: torch.cat([t, t + 1, t], 1).contiguous(memory_format=torch.channels_last)[
        :, : t.shape[1]
    ],
    "crop": lambda t: F.pad(t, (1, 2, 3, 1)).contiguous(memory_format=torch.channels_last)[:, :, 3:-1, 1:-2],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "every_second_image": lambda t: t.repeat_interleave(2, 0).contiguous(memory_format=torch.channels_last)[
        ::2
    ],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ("input", "weight", "residual"))
def test_conv2d_reads_every_layout(name, layout):
    operands = make_operands(TINY, torch.float32, "cpu")
    changed = operands | {name: LAYOUTS[layout](operands[name])}
    assert torch.equal(changed[name], operands[name])
    assert_close(conv2d(**changed, padding=1), operands, TINY.options)


def test_conv2d_expanded_input():
    operands = make_operands(ODD, torch.float32, "cpu")
    operands["input"] = operands["input"][:1, :1, :1, :1].expand(2, 17, 5, 4)
    operands["bias"] = operands["bias"][:1].expand(33)
    assert_close(conv2d(**operands, padding=1), operands, ODD.options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conv2d_nan_and_inf_stay_in_their_receptive_field(activation, dtype):
    operands = make_operands(ODD, dtype, "cpu")
    operands["input"][0, 3, 2, 2], operands["input"][1, 16, 4, 3] = torch.nan, torch.inf
    operands["residual"][1, 5, 0, 0] = torch.nan
    output = conv2d(**operands, padding=1, activation=activation).double()
    reference = F.conv2d(operands["input"].double(), operands["weight"].double(), padding=1)
    reference = (
        reference * operands["scale"].double()[:, None, None] + operands["bias"].double()[:, None, None]
    )
    reference = ACTIVATIONS[activation](reference + operands["residual"].double())
    assert torch.equal(output.isnan(), reference.isnan())
    assert output.isnan().sum() >= 9 * 33
    assert torch.equal(output.isinf(), reference.isinf())
    torch.testing.assert_close(output, reference, rtol=2e-2, atol=2e-2, equal_nan=True)


@pytest.mark.parametrize("where", ("input", "out"))
def test_conv2d_element_offsets_above_32_bits(where):
    """Two pixels 2³⁰ + 8 elements apart, in memory that is never touched between them."""
    stride = 2**30 + 8
    reserve = 0x4000  # MAP_NORESERVE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (2 * stride + 64), flags=flags), dtype=torch.float16)
    wide = memory.as_strided((1, 16, 1, 3), (3 * stride, 1, 3 * stride, stride))
    shape = Shape((1, 16, 1, 3), (16, 16, 1, 1))
    operands = make_operands(shape, torch.float16, "cpu")
    if where == "input":
        wide.copy_(operands["input"])
        output = conv2d(**operands | {"input": wide})
    else:
        output = conv2d(**operands, out=wide)
    assert_close(output, operands, {})


def test_conv2d_empty_batch():
    operands = make_operands(ODD, torch.float32, "cpu")
    empty = conv2d(operands["input"][:0], operands["weight"], residual=operands["residual"][:0], padding=1)
    assert empty.shape == (0, 33, 5, 4)


def channels_last(*size: int) -> torch.Tensor:
    return torch.zeros(size).to(memory_format=torch.channels_last)


ERRORS = {
    "input has 3 channels, but weight (8, 4, 3, 3) with groups=1 needs 4": {
        "weight": torch.zeros(8, 4, 3, 3)
    },
    "weight (8, 3, 3, 3) has 8 output channels, not divisible by groups=3": {
        "input": torch.zeros(2, 9, 6, 5),
        "groups": 3,
    },
    "groups is 0, needs to be at least 1": {"groups": 0},
    "stride is (0, 1), needs at least 1": {"stride": (0, 1)},
    "stride is (1, 1, 1), needs one or two numbers": {"stride": (1, 1, 1)},
    "padding is (-1, -1), needs at least 0": {"padding": -1},
    "dilation is (1, 0), needs at least 1": {"dilation": (1, 0)},
    "kernel (3, 3) with dilation (3, 3) is larger than the padded input": {"dilation": 3},
    "4228120576 output pixels, more than 2147482624: split": {
        "input": torch.zeros(1).expand(2**16, 3, 256, 256)
    },
    "input (2, 3, 0, 5) has no channels or no pixels": {"input": torch.zeros(2, 3, 0, 5)},
    "weight (8, 3, 0, 3) has a dimension of size 0": {"weight": torch.zeros(8, 3, 0, 3)},
    "input has shape (3, 6, 5), needs 4 dimensions": {"input": torch.zeros(3, 6, 5)},
    "weight has shape (8, 3), needs 4 dimensions": {"weight": torch.zeros(8, 3)},
    "bias has shape (7,), needs (8,)": {"bias": torch.zeros(7)},
    "scale has shape (1,), needs (8,)": {"scale": torch.zeros(1)},
    "residual has shape (2, 8, 1, 1), needs (2, 8, 4, 3)": {"residual": torch.zeros(2, 8, 1, 1)},
    'activation is "gelu", needs one of none, relu, sigmoid': {"activation": "gelu"},
    "input has dtype torch.float64": {
        "input": torch.zeros(2, 3, 6, 5).double(),
        "weight": torch.zeros(8, 3, 3, 3).double(),
    },
    "weight has dtype torch.float16, but input has torch.float32": {"weight": torch.zeros(8, 3, 3, 3).half()},
    "residual has dtype torch.bfloat16, but input has torch.float32": {
        "residual": torch.zeros(2, 8, 4, 3).bfloat16()
    },
    "weight is on meta, but input is on cpu": {"weight": torch.zeros(8, 3, 3, 3, device="meta")},
    "input requires grad": {"input": torch.zeros(2, 3, 6, 5, requires_grad=True)},
    "out_channel_offset is 2, but out is absent": {"out_channel_offset": 2},
    "out has shape (2, 8, 4, 4), needs (2, at least 8, 4, 3)": {"out": channels_last(2, 8, 4, 4)},
    "channels 3 to 11 lie outside out (2, 10, 4, 3)": {
        "out": channels_last(2, 10, 4, 3),
        "out_channel_offset": 3,
    },
    "channels -1 to 7 lie outside out (2, 10, 4, 3)": {
        "out": channels_last(2, 10, 4, 3),
        "out_channel_offset": -1,
    },
    "is not channels_last memory": {"out": torch.zeros(2, 8, 4, 3)},
    "strides (0, 1, 0, 0) is not channels_last": {"out": torch.zeros(8).view(1, 8, 1, 1).expand(2, 8, 4, 3)},
    "out has dtype torch.float16, but input has torch.float32": {"out": channels_last(2, 8, 4, 3).half()},
}


@pytest.mark.parametrize("message", ERRORS)
def test_conv2d_rejects(message):
    arguments = {"input": torch.zeros(2, 3, 6, 5), "weight": torch.ones(8, 3, 3, 3), "bias": torch.ones(8)}
    arguments |= ERRORS[message]
    out = arguments.get("out")
    before = None if out is None else out.clone()
    with pytest.raises(RuntimeError) as error:
        conv2d(**arguments)
    assert str(error.value).startswith("cnnfast.triton.conv2d: ") and message in str(error.value)
    assert out is None or torch.equal(out, before)


def test_a_grid_has_its_limit():
    with pytest.raises(RuntimeError, match="conv2d: 2147483648 programs, more than a grid can have"):
        launch("conv2d", None, 2**31, {}, {}, {})


@pytest.mark.parametrize("name", ("input", "weight", "bias", "scale", "residual"))
def test_conv2d_rejects_an_output_over_what_it_reads(name):
    shape = Shape((2, 8, 4, 3), (8, 8, 1, 1))
    operands = make_operands(shape, torch.float32, "cpu")
    memory = torch.randn(400)
    out = memory[:192].view(2, 4, 3, 8).permute(0, 3, 1, 2)
    size, first = operands[name].shape, 5  # begins inside out, at no multiple of its pixels
    source = memory[first : first + operands[name].numel()].view(size)
    if source.dim() == 4:
        source = source.view(size[0], size[2], size[3], size[1]).permute(0, 3, 1, 2)
    before = memory.clone()
    with pytest.raises(RuntimeError, match=f"out channels 0 to 8 overlap {name} in memory"):
        conv2d(**operands | {name: source}, out=out)
    assert torch.equal(memory, before)


def test_conv2d_rejects_channels_of_one_buffer_that_overlap():
    buffer = channels_last(2, 13, 5, 5)
    with pytest.raises(RuntimeError, match="out channels 8 to 12 overlap input in memory"):
        conv2d(buffer[:, :9], torch.zeros(4, 9, 3, 3), padding=1, out=buffer, out_channel_offset=8)
    with pytest.raises(RuntimeError, match="out channels 0 to 4 overlap input in memory"):
        conv2d(buffer[:, 3:12], torch.zeros(4, 9, 3, 3), padding=1, out=buffer)
