"""Gradient of a convolution's input as an implicit matrix product on NHWC memory.

Rows are input pixels, columns input channels, the sum runs over taps and output channels. With a stride s, an
input pixel has only every s-th tap: programs take pixels of one phase (position modulo the stride), so that
all their rows share the taps and no multiplication is wasted on zeros between the output's pixels.
"""

from collections.abc import Sequence
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnfast.triton.blocks import INTERPRETED, multiple, multiply, reduction_block, reduction_steps
from cnnfast.triton.conv2d_arguments import (
    Geometry,
    Prologue,
    check_prologue,
    check_shapes,
    check_tensors,
    geometry,
    output_slice,
    precision_of,
    require,
)
from cnnfast.triton.launch import divide_up, is_aligned, launch, place, rows_of_weights, vectors
from cnnfast.triton.signature import NAMES, Signature, make_signature, product_constants, tile_options
from cnnfast.triton.tiles import Access, Tile, choose_tile, input_grad_product, machine_of

SIZES = (
    "batch", "in_h", "in_w", "out_h", "out_w", "in_channels", "out_channels", "groups",
    "kernel_h", "kernel_w", "dy_stride", "dx_stride", "residual_stride", "x_stride",
    "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "tap_step_h", "tap_step_w",
)  # fmt: skip
VECTORS = ("pre_scale_ptr", "pre_shift_ptr")


@triton.jit
def _phase_taps(offset, kernel, stride, dilation, tap_step):
    """First tap of the phase and how many there are: those with (offset - tap * dilation) % stride == 0."""
    first = kernel  # none
    for tap in range(0, tap_step):
        fits = (offset - tap * dilation) % stride == 0
        first = tl.where(fits & (tap < first), tap, first)
    return first, tl.cdiv(kernel - first, tap_step)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=VECTORS)
def input_grad_kernel(
    dy_ptr,
    w_ptr,
    dx_ptr,
    residual_ptr,
    x_ptr,  # where there is a prologue: it decides where ReLU let a gradient through
    pre_scale_ptr,
    pre_shift_ptr,
    batch,
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
    dx_stride,
    residual_stride,
    x_stride,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    tap_step_h,  # from one tap of a phase to its next
    tap_step_w,
    ALIGN: tl.constexpr,  # divides all channel counts and pixel strides
    POINTWISE: tl.constexpr,
    STRIDED: tl.constexpr,
    ACROSS_TAPS: tl.constexpr,
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
    dx_stride = multiple(dx_stride, ALIGN)
    # Channels first, then phases: programs that run side by side read the same gradients.
    program = tl.program_id(0)
    n_tiles = tl.cdiv(in_channels, BLOCK_N)
    n = (program % n_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    group = (program // n_tiles) % groups
    program = program // (n_tiles * groups)
    if STRIDED:
        phase_x = program % stride_w
        phase_y = (program // stride_w) % stride_h
        m = program // (stride_h * stride_w) * BLOCK_M + tl.arange(0, BLOCK_M)
        first_y, taps_y = _phase_taps(phase_y + pad_h, kernel_h, stride_h, dilation_h, tap_step_h)
        first_x, taps_x = _phase_taps(phase_x + pad_w, kernel_w, stride_w, dilation_w, tap_step_w)
        # A phase may have no pixel at all: then no row is inside.
        phase_h = (in_h - phase_y + stride_h - 1) // stride_h
        phase_w = (in_w - phase_x + stride_w - 1) // stride_w
        m_inside = m < batch * phase_h * phase_w
        row_length = tl.maximum(phase_w, 1)
        rows = tl.maximum(phase_h, 1)
    else:
        phase_x = 0
        phase_y = 0
        m = program * BLOCK_M + tl.arange(0, BLOCK_M)
        first_y = 0
        first_x = 0
        taps_y = kernel_h
        taps_x = kernel_w
        m_inside = m < batch * in_h * in_w
        row_length = in_w
        rows = in_h
    n_inside = n < in_channels
    taps = taps_y * taps_x

    # Position in units of the stride; element offsets are 64-bit.
    x0 = m % row_length
    y0 = (m // row_length) % rows
    image = (m // row_length // rows).to(tl.int64)
    dy_rows = dy_ptr + ((image * out_h + y0) * out_w + x0)[:, None] * dy_stride
    dy_rows += group.to(tl.int64) * out_channels
    filter_length = kernel_h * kernel_w * in_channels
    w_columns = w_ptr + group.to(tl.int64) * out_channels * filter_length + n[None, :]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, reduction_steps(out_channels, taps, BLOCK_K, ACROSS_TAPS)):
        tap, channel, k_inside = reduction_block(step, out_channels, taps, BLOCK_K, ACROSS_TAPS)
        inside = m_inside[:, None] & k_inside[None, :]
        if POINTWISE and not STRIDED:
            dy_offset = channel.to(tl.int64)
            w_offset = channel.to(tl.int64) * filter_length
        else:
            tap_y = first_y + tap // taps_x * tap_step_h
            tap_x = first_x + tap % taps_x * tap_step_w
            # Both divisions are exact: that is what makes a tap one of the phase's.
            down = (phase_y + pad_h - tap_y * dilation_h) // stride_h
            right = (phase_x + pad_w - tap_x * dilation_w) // stride_w
            row = y0[:, None] + down[None, :]
            column = x0[:, None] + right[None, :]
            inside &= (row >= 0) & (row < out_h) & (column >= 0) & (column < out_w)
            dy_offset = (down * out_w + right).to(tl.int64) * dy_stride + channel
            w_offset = channel.to(tl.int64) * filter_length + (tap_y * kernel_w + tap_x) * in_channels
        dy = tl.load(dy_rows + dy_offset[None, :], mask=inside, other=0.0)
        w = tl.load(w_columns + w_offset[:, None], mask=k_inside[:, None] & n_inside[None, :], other=0.0)
        if THROUGH_REGISTERS:  # changes no value, but the way to the product
            w = tl.where(n_inside[None, :], w, 0.0)
        acc = multiply(dy, w, acc, PRECISION, UPCAST)

    c = group * in_channels + n
    dx_inside = m_inside[:, None] & n_inside[None, :]
    if STRIDED:
        pixel = ((image * in_h + y0 * stride_h + phase_y) * in_w + x0 * stride_w + phase_x)[:, None]
    else:
        pixel = m.to(tl.int64)[:, None]
    if pre_scale_ptr is not None:
        x_stride = multiple(x_stride, ALIGN)
        scale = tl.load(pre_scale_ptr + c, mask=n_inside, other=0.0).to(tl.float32)[None, :]
        shift = tl.load(pre_shift_ptr + c, mask=n_inside, other=0.0).to(tl.float32)[None, :]
        x = tl.load(x_ptr + pixel * x_stride + c[None, :], mask=dx_inside, other=0.0).to(tl.float32)
        acc = tl.where(x * scale + shift <= 0, 0.0, acc)  # a NaN lets the gradient through, as torch's ReLU
    if residual_ptr is not None:
        residual_stride = multiple(residual_stride, ALIGN)
        residual = tl.load(residual_ptr + pixel * residual_stride + c[None, :], mask=dx_inside, other=0.0)
        acc += residual.to(tl.float32)
    tl.store(dx_ptr + pixel * dx_stride + c[None, :], acc.to(dx_ptr.dtype.element_ty), mask=dx_inside)


def signature(
    dtype: torch.dtype,
    tile: Tile,
    *,
    aligned: bool = True,
    pointwise: bool = False,
    strided: bool = False,
    across_taps: bool = False,
    precision: str = "tf32",
    residual: bool = False,
    pre_relu: bool = False,
) -> Signature:
    """How `input_grad_kernel` is compiled. Vectors with one element per channel are float32."""
    name = NAMES[dtype]
    images = {"dy_ptr": name, "w_ptr": name, "dx_ptr": name}
    images |= {"residual_ptr": name if residual else None, "x_ptr": name if pre_relu else None}
    return make_signature(
        input_grad_kernel,
        images,
        dict.fromkeys(VECTORS, "fp32" if pre_relu else None),
        _constants(dtype, tile, aligned, pointwise, strided, across_taps, precision),
        aligned,
        tile_options(tile),
    )


def conv2d_input_grad(
    grad_output: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: int | Sequence[int] = (1, 1),
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
    groups: int = 1,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    out_channel_offset: int = 0,
    *,
    input: Tensor | None = None,
    pre_scale: Tensor | None = None,
    pre_shift: Tensor | None = None,
    allow_tf32: bool | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """The gradient of a convolution's input, plus residual.

    Args:
        grad_output: (N, out, OH, OW), float32, float16 or bfloat16; read by pixel stride where its memory is
            in NHWC order, else copied first. N may be 0.
        weight: (out, C / groups, kh, kw), dtype of grad_output; best kept in channels_last memory.
        input_size: (N, C, H, W), the shape of the convolution's input.
        stride, padding, dilation, groups: of the convolution.
        residual: shape input_size, dtype of grad_output: added to the gradient (of another consumer of the
            same input). It may be the slice of `out` that is written.
        out: (N, at least out_channel_offset + C, H, W), channels_last memory: receives the gradient in its
            channels from out_channel_offset on, all others stay as they are.
        input, pre_scale, pre_shift: all or none. The convolution's operand was
            `relu(input * pre_scale[c] + pre_shift[c])`; the result is then the gradient of what ReLU was
            applied to: zero where that was not positive. (Batch norm's own backward goes on from there.)
        allow_tf32, tile: as in `cnnfast.triton.conv2d.conv2d`.

    Returns:
        (N, C, H, W): a channels_last tensor, or a view of the slice of `out`. Zero where no output pixel
        reads.

    Raises:
        RuntimeError: arguments that do not fit; names the argument and the shapes, nothing is written.
    """
    operator = "conv2d_input_grad"
    images = {"grad_output": grad_output, "weight": weight, "residual": residual, "input": input}
    prologue = Prologue(pre_scale, pre_shift, "none" if pre_scale is None else "relu")
    check_tensors(operator, images | {"out": out}, prologue.tensors(), can_run_on_cpu=INTERPRETED)
    sizes = geometry(operator, input_size, weight.shape, stride, padding, dilation, groups)
    shape = sizes.input_shape
    needed = [("grad_output", grad_output, sizes.output_shape), ("residual", residual, shape)]
    check_shapes(operator, [*needed, ("input", input, shape)])
    check_prologue(operator, sizes, prologue)
    together = (input is None) == (pre_scale is None)
    require(operator, together, "input goes with pre_scale and pre_shift, but one of them is None")
    if out is None:
        text = f"out_channel_offset is {out_channel_offset}, but out is absent"
        require(operator, out_channel_offset == 0, text)
        target = grad_output.new_empty(shape).to(memory_format=torch.channels_last)
    else:
        sources = images | prologue.tensors()
        target = output_slice(operator, shape, out, out_channel_offset, sources, "residual")
    if target.numel() > 0:
        precision = precision_of(grad_output.dtype, allow_tf32)
        _launch(operator, sizes, grad_output, weight, residual, input, prologue, target, precision, tile)
    return target


def _launch(
    operator: str,
    sizes: Geometry,
    grad_output: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    input: Tensor | None,
    prologue: Prologue,
    target: Tensor,
    precision: str,
    tile: Tile | None,
) -> None:
    images = {"dy": grad_output, "dx": target, "residual": residual, "x": input}
    pointers, strides = place(images)
    pointers["w_ptr"] = rows_of_weights(weight, sizes)
    aligned = is_aligned(pointers, strides, sizes)
    product = input_grad_product(sizes)
    if tile is None:
        access = Access(aligned, precision)
        tile = choose_tile(product, grad_output.element_size(), access, machine_of(grad_output.device))
    stride_h, stride_w = sizes.stride
    tap_step_h, tap_step_w = (s // gcd(s, d) for s, d in zip(sizes.stride, sizes.dilation, strict=True))
    # The first phase has the most pixels; programs of the others that have none only pass.
    phase_pixels = sizes.batch * divide_up(sizes.in_h, stride_h) * divide_up(sizes.in_w, stride_w)
    programs = divide_up(phase_pixels, tile.block_m) * stride_h * stride_w
    constants = _constants(
        *(grad_output.dtype, tile, aligned, sizes.pointwise, sizes.stride != (1, 1)),
        *(tile.spans_taps(product), precision),
    )
    tap_steps = {"tap_step_h": tap_step_h, "tap_step_w": tap_step_w}
    launch(
        operator,
        input_grad_kernel,
        programs * sizes.groups * divide_up(sizes.in_channels, tile.block_n),
        {**pointers, **vectors(**prologue.tensors()), **strides, **sizes.arguments(), **tap_steps},
        constants,
        tile_options(tile),
    )


def _constants(
    dtype: torch.dtype,
    tile: Tile,
    aligned: bool,
    pointwise: bool,
    strided: bool,
    across_taps: bool,
    precision: str,
) -> dict[str, object]:
    return product_constants(dtype, tile, aligned, precision) | {
        "POINTWISE": pointwise,
        "STRIDED": strided,
        "ACROSS_TAPS": across_taps,
        "THROUGH_REGISTERS": tile.through_registers,
    }
