"""Gradient of a convolution's weight as an implicit matrix product on NHWC memory.

Rows are output channels, columns taps and input channels, the sum runs over output pixels. The pixels are cut
into parts of equal size that run side by side; a second kernel adds the parts in a fixed order. No atomics:
the result is the same in every run.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnfast.triton.blocks import INTERPRETED, multiple, multiply, normalise
from cnnfast.triton.conv2d_arguments import (
    Geometry,
    Prologue,
    check_prologue,
    check_shapes,
    check_tensors,
    geometry,
    precision_of,
    require,
)
from cnnfast.triton.launch import divide_up, is_aligned, launch, place, vectors
from cnnfast.triton.signature import (
    NAMES,
    Signature,
    compiler_options,
    make_signature,
    product_constants,
    tile_options,
)
from cnnfast.triton.tiles import Access, Tile, choose_parts, choose_tile, machine_of, weight_grad_product

SIZES = (
    "pixels", "in_h", "in_w", "out_h", "out_w", "in_channels", "out_channels", "groups",
    "kernel_h", "kernel_w", "dy_stride", "x_stride",
    "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "part_pixels",
)  # fmt: skip
VECTORS = ("pre_scale_ptr", "pre_shift_ptr")
SUM_BLOCK = 1024
SUM_WARPS = 4


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=VECTORS)
def weight_grad_kernel(
    dy_ptr,
    x_ptr,
    parts_ptr,  # (parts, out channels, taps, in channels)
    pre_scale_ptr,
    pre_shift_ptr,
    pixels,
    in_h,
    in_w,
    out_h,
    out_w,
    in_channels,  # of one group, as out_channels
    out_channels,
    groups,
    kernel_h,
    kernel_w,
    dy_stride,  # elements from pixel to pixel
    x_stride,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    part_pixels,  # a multiple of BLOCK_K
    ALIGN: tl.constexpr,  # divides all channel counts and pixel strides
    POINTWISE: tl.constexpr,
    ACROSS_TAPS: tl.constexpr,
    PRE_RELU: tl.constexpr,
    THROUGH_REGISTERS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    in_channels = multiple(in_channels, ALIGN)
    out_channels = multiple(out_channels, ALIGN)
    dy_stride = multiple(dy_stride, ALIGN)
    x_stride = multiple(x_stride, ALIGN)
    taps = kernel_h * kernel_w
    row_length = taps * in_channels
    # Parts last: programs that run side by side read the same pixels.
    program = tl.program_id(0)
    m_tiles = tl.cdiv(out_channels, BLOCK_M)
    m = (program % m_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_inside = m < out_channels
    program = program // m_tiles
    column = tl.arange(0, BLOCK_N)
    if ACROSS_TAPS:
        # Few channels: a tile spans several taps.
        n_tiles = tl.cdiv(row_length, BLOCK_N)
        n = (program % n_tiles) * BLOCK_N + column
        tap = n // in_channels
        channel = n % in_channels
        n_inside = n < row_length
    else:
        blocks = tl.cdiv(in_channels, BLOCK_N)
        n_tiles = taps * blocks
        tap = (program % n_tiles) // blocks + tl.zeros((1,), tl.int32)
        channel = (program % blocks) * BLOCK_N + column
        n = tap * in_channels + channel
        n_inside = channel < in_channels
    program = program // n_tiles
    group = program % groups
    part = program // groups
    first = part * part_pixels

    down = tap // kernel_w * dilation_h - pad_h
    right = tap % kernel_w * dilation_w - pad_w
    dy_rows = dy_ptr + (group.to(tl.int64) * out_channels + m)[:, None]
    x_columns = x_ptr + ((down * in_w + right).to(tl.int64) * x_stride + channel)[None, :]
    x_columns += group.to(tl.int64) * in_channels
    if pre_scale_ptr is not None:
        c = group * in_channels + channel
        scale = tl.load(pre_scale_ptr + c, mask=n_inside, other=0.0).to(tl.float32)[None, :]
        shift = tl.load(pre_shift_ptr + c, mask=n_inside, other=0.0).to(tl.float32)[None, :]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    last = tl.minimum(pixels - first, part_pixels) + first
    for start in range(first, last, BLOCK_K):
        p = start + tl.arange(0, BLOCK_K)
        p_inside = p < last
        y0 = (p // out_w) % out_h * stride_h
        x0 = p % out_w * stride_w
        image = (p // out_w // out_h).to(tl.int64)
        dy_offset = p.to(tl.int64)[None, :] * dy_stride
        dy = tl.load(dy_rows + dy_offset, mask=m_inside[:, None] & p_inside[None, :], other=0.0)
        inside = p_inside[:, None] & n_inside[None, :]
        if not POINTWISE:
            row = y0[:, None] + down[None, :]
            col = x0[:, None] + right[None, :]
            inside &= (row >= 0) & (row < in_h) & (col >= 0) & (col < in_w)
        x_offset = ((image * in_h + y0) * in_w + x0)[:, None] * x_stride
        x = tl.load(x_columns + x_offset, mask=inside, other=0.0)
        if pre_scale_ptr is not None:
            x = normalise(x, scale, shift, inside, PRE_RELU)
        elif THROUGH_REGISTERS:
            x = tl.where(n_inside[None, :], x, 0.0)
        if THROUGH_REGISTERS:  # changes no value, but the way to the product
            dy = tl.where(m_inside[:, None], dy, 0.0)
        acc = multiply(dy, x, acc, PRECISION, UPCAST)

    row_of = (part.to(tl.int64) * groups + group) * out_channels + m
    at = parts_ptr + row_of[:, None] * row_length + n[None, :]
    tl.store(at, acc.to(parts_ptr.dtype.element_ty), mask=m_inside[:, None] & n_inside[None, :])


@triton.jit(do_not_specialize=("parts", "numel"))
def sum_parts_kernel(parts_ptr, sum_ptr, parts, numel, ALIGN: tl.constexpr, BLOCK: tl.constexpr):
    """sum_ptr[i] = parts_ptr[0, i] + parts_ptr[1, i] + ... in that order."""
    numel = multiple(numel, ALIGN)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    total = tl.zeros((BLOCK,), tl.float32)
    parts_ptr += i
    for _ in range(0, parts):
        total += tl.load(parts_ptr, mask=inside, other=0.0)
        parts_ptr += numel
    tl.store(sum_ptr + i, total.to(sum_ptr.dtype.element_ty), mask=inside)


def signature(
    dtype: torch.dtype,
    tile: Tile,
    *,
    aligned: bool = True,
    pointwise: bool = False,
    across_taps: bool = False,
    precision: str = "tf32",
    prologue: bool = False,
    pre_relu: bool = True,
) -> Signature:
    """How `weight_grad_kernel` is compiled; parts are float32, vectors with one element per channel too."""
    name = NAMES[dtype]
    return make_signature(
        weight_grad_kernel,
        {"dy_ptr": name, "x_ptr": name, "parts_ptr": "fp32"},
        dict.fromkeys(VECTORS, "fp32" if prologue else None),
        _constants(dtype, tile, aligned, pointwise, across_taps, precision, pre_relu and prologue),
        aligned,
        tile_options(tile),
    )


def sum_signature(dtype: torch.dtype, *, aligned: bool = True) -> Signature:
    """How `sum_parts_kernel` is compiled; dtype is that of the weight. aligned: numel is a multiple of 4."""
    pointers = {"parts_ptr": "fp32", "sum_ptr": NAMES[dtype]}
    return make_signature(
        sum_parts_kernel, pointers, {}, _sum_constants(aligned), aligned, compiler_options(SUM_WARPS)
    )


def conv2d_weight_grad(
    grad_output: Tensor,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: int | Sequence[int] = (1, 1),
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
    groups: int = 1,
    *,
    pre_scale: Tensor | None = None,
    pre_shift: Tensor | None = None,
    pre_activation: str = "none",
    allow_tf32: bool | None = None,
    tile: Tile | None = None,
    parts: int | None = None,
) -> Tensor:
    """The gradient of a convolution's weight.

    Args:
        grad_output: (N, out, OH, OW), float32, float16 or bfloat16; read by pixel stride where its memory is
            in NHWC order, else copied first. N may be 0: the gradient is zero.
        input: (N, C, H, W), dtype of grad_output, read likewise.
        kernel_size: (kh, kw).
        stride, padding, dilation, groups: of the convolution.
        pre_scale, pre_shift, pre_activation: what the convolution did to its input on load, as in
            `cnnfast.triton.conv2d.conv2d`.
        allow_tf32, tile: as there.
        parts: how many sums of pixels run side by side, instead of the modelled best. The result depends on
            it in its last bits.

    Returns:
        (out, C / groups, kh, kw), dtype of input, channels_last memory.

    Raises:
        RuntimeError: arguments that do not fit; names the argument and the shapes.
    """
    operator = "conv2d_weight_grad"
    prologue = Prologue(pre_scale, pre_shift, pre_activation)
    images = {"grad_output": grad_output, "input": input}
    check_tensors(operator, images, prologue.tensors(), can_run_on_cpu=INTERPRETED)
    weight_shape = _weight_shape(operator, grad_output, input, kernel_size, groups)
    sizes = geometry(operator, input.shape, weight_shape, stride, padding, dilation, groups)
    check_shapes(operator, [("grad_output", grad_output, sizes.output_shape)])
    check_prologue(operator, sizes, prologue)
    result = input.new_empty(sizes.weight_shape).to(memory_format=torch.channels_last)
    if sizes.pixels == 0:
        return result.zero_()
    precision = precision_of(input.dtype, allow_tf32)
    _launch(operator, sizes, grad_output, input, prologue, result, precision, tile, parts)
    return result


def _weight_shape(
    operator: str, grad_output: Tensor, input: Tensor, kernel_size: Sequence[int], groups: int
) -> tuple[int, ...]:
    def check(condition: bool, message: str) -> None:
        require(operator, condition, message)

    kernel_size = tuple(kernel_size)
    check(len(kernel_size) == 2, f"kernel_size is {kernel_size}, needs two numbers")
    check(grad_output.dim() == 4, f"grad_output has shape {tuple(grad_output.shape)}, needs 4 dimensions")
    check(input.dim() == 4, f"input has shape {tuple(input.shape)}, needs 4 dimensions (N, C, H, W)")
    check(groups >= 1, f"groups is {groups}, needs to be at least 1")
    channels = input.shape[1]
    check(channels % groups == 0, f"input has {channels} channels, not divisible by groups={groups}")
    return (grad_output.shape[1], channels // groups, *kernel_size)


def _launch(
    operator: str,
    sizes: Geometry,
    grad_output: Tensor,
    input: Tensor,
    prologue: Prologue,
    result: Tensor,
    precision: str,
    tile: Tile | None,
    parts: int | None,
) -> None:
    pointers, strides = place({"dy": grad_output, "x": input})
    aligned = is_aligned(pointers, strides, sizes)
    product = weight_grad_product(sizes)
    machine = machine_of(input.device)
    if tile is None:
        access = Access(aligned, precision, prologue.scale is not None)
        tile = choose_tile(product, input.element_size(), access, machine)
    if parts is None:
        parts = choose_parts(product, tile, input.element_size(), machine)
    part_pixels = divide_up(divide_up(sizes.pixels, parts), tile.block_k) * tile.block_k
    parts = divide_up(sizes.pixels, part_pixels)
    across_taps = sizes.taps > 1 and sizes.in_channels < tile.block_n
    if across_taps:
        n_tiles = divide_up(sizes.reduction, tile.block_n)
    else:
        n_tiles = sizes.taps * divide_up(sizes.in_channels, tile.block_n)
    programs = divide_up(sizes.out_channels, tile.block_m) * n_tiles * sizes.groups * parts
    sums = input.new_empty((parts, result.numel()), dtype=torch.float32)
    shared = {"parts_ptr": sums, "part_pixels": part_pixels}
    constants = _constants(
        *(input.dtype, tile, aligned, sizes.pointwise, across_taps, precision),
        prologue.activation == "relu",
    )
    launch(
        operator,
        weight_grad_kernel,
        programs,
        {**pointers, **vectors(**prologue.tensors()), **strides, **sizes.arguments(), **shared},
        constants,
        tile_options(tile),
    )
    launch(
        operator,
        sum_parts_kernel,
        divide_up(result.numel(), SUM_BLOCK),
        {"parts_ptr": sums, "sum_ptr": result, "parts": parts, "numel": result.numel()},
        _sum_constants(result.numel() % 4 == 0),
        compiler_options(SUM_WARPS),
    )


def _constants(
    dtype: torch.dtype,
    tile: Tile,
    aligned: bool,
    pointwise: bool,
    across_taps: bool,
    precision: str,
    pre_relu: bool,
) -> dict[str, object]:
    return product_constants(dtype, tile, aligned, precision) | {
        "POINTWISE": pointwise,
        "ACROSS_TAPS": across_taps,
        "PRE_RELU": pre_relu,
        "THROUGH_REGISTERS": tile.through_registers,
    }


def _sum_constants(aligned: bool) -> dict[str, object]:
    return {"ALIGN": 4 if aligned else 1, "BLOCK": SUM_BLOCK}
