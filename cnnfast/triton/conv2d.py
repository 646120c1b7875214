"""Convolution forward as an implicit matrix product on NHWC memory.

Rows are output pixels, columns output channels, the sum runs over taps and input channels; no im2col buffer
exists. The epilogue and the channel slice of the output are part of the store.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnfast.triton.conv2d_arguments import (
    Geometry,
    check_epilogue,
    check_tensors,
    geometry,
    output_slice,
    require,
)
from cnnfast.triton.nhwc import as_nhwc
from cnnfast.triton.tiles import Access, Tile, choose_tile, machine_of


@triton.jit
def _reduction_block(step, in_channels, TAPS: tl.constexpr, BLOCK_K: tl.constexpr, ACROSS_TAPS: tl.constexpr):
    """Tap, input channel, position in a row of the weight and validity of the step's BLOCK_K summands."""
    if ACROSS_TAPS:
        # Few channels: one step spans several taps, or most of it would be padding.
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        return k // in_channels, k % in_channels, k, k < TAPS * in_channels
    else:
        # One tap a step: one position for the whole block, and its channels are adjacent in memory.
        blocks = tl.cdiv(in_channels, BLOCK_K)
        tap = step // blocks + tl.zeros((1,), tl.int32)
        channel = (step % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
        return tap, channel, tap * in_channels + channel, channel < in_channels


@triton.jit
def _activate(y, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        y = tl.where(y < 0, 0.0, y)  # a comparison, not a maximum: NaN stays NaN
    elif ACTIVATION == "sigmoid":
        y = 1.0 / (1.0 + tl.exp(-y))
    return y


@triton.jit
def _conv2d_forward_kernel(
    x_ptr,
    w_ptr,
    y_ptr,
    bias_ptr,
    scale_ptr,
    residual_ptr,
    pixels,
    in_h,
    in_w,
    out_h,
    out_w,
    in_channels,  # of one group, as out_channels
    out_channels,
    groups,
    x_stride,  # elements from pixel to pixel
    y_stride,
    residual_stride,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ACROSS_TAPS: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    # Channels first: programs that run side by side read the same pixels, and the weight stays in L2 anyway.
    program = tl.program_id(0)
    n_tiles = tl.cdiv(out_channels, BLOCK_N)
    group = (program // n_tiles) % groups
    m = (program // (n_tiles * groups)) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (program % n_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_inside = m < pixels
    n_inside = n < out_channels

    # Position of tap (0, 0), which may lie outside the image. Element offsets are 64-bit from here on.
    y0 = (m // out_w) % out_h * stride_h - pad_h
    x0 = m % out_w * stride_w - pad_w
    image = (m // out_w // out_h).to(tl.int64)
    first_pixel = (image * in_h + y0) * in_w + x0
    x_rows = x_ptr + first_pixel[:, None] * x_stride + group.to(tl.int64) * in_channels
    w_columns = w_ptr + (group * out_channels + n).to(tl.int64)[None, :] * (TAPS * in_channels)

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if ACROSS_TAPS:
        steps = tl.cdiv(TAPS * in_channels, BLOCK_K)
    else:
        steps = TAPS * tl.cdiv(in_channels, BLOCK_K)
    for step in range(0, steps):
        tap, channel, k, k_inside = _reduction_block(step, in_channels, TAPS, BLOCK_K, ACROSS_TAPS)
        down = tap // KERNEL_W * dilation_h
        right = tap % KERNEL_W * dilation_w
        row = y0[:, None] + down[None, :]
        column = x0[:, None] + right[None, :]
        in_image = (row >= 0) & (row < in_h) & (column >= 0) & (column < in_w)
        x_offset = (down * in_w + right).to(tl.int64) * x_stride + channel
        x = tl.load(
            x_rows + x_offset[None, :], mask=in_image & m_inside[:, None] & k_inside[None, :], other=0.0
        )
        w = tl.load(w_columns + k[:, None], mask=k_inside[:, None] & n_inside[None, :], other=0.0)
        if UPCAST:
            x = x.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)

    c = group * out_channels + n
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + c, mask=n_inside, other=0.0).to(tl.float32)[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + c, mask=n_inside, other=0.0).to(tl.float32)[None, :]
    y_inside = m_inside[:, None] & n_inside[None, :]
    pixel = m.to(tl.int64)[:, None]
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + pixel * residual_stride + c[None, :], mask=y_inside, other=0.0)
        acc += residual.to(tl.float32)
    y = _activate(acc, ACTIVATION)
    tl.store(y_ptr + pixel * y_stride + c[None, :], y.to(y_ptr.dtype.element_ty), mask=y_inside)


INTERPRETED = not isinstance(_conv2d_forward_kernel, triton.runtime.JITFunction)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    stride: int | Sequence[int] = (1, 1),
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
    out: Tensor | None = None,
    out_channel_offset: int = 0,
    *,
    allow_tf32: bool | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """`activation(conv(input, weight) * scale[c] + bias[c] + residual)` on a CUDA device, forward only.

    Args:
        input: (N, C, H, W), float32, float16 or bfloat16. channels_last tensors and channel slices of them
            are read where they lie, other layouts are copied first. N may be 0.
        weight: (out, C / groups, kh, kw), dtype of input; best kept in channels_last memory.
        bias, scale: (out,), dtype of input or float32.
        residual: shape of the output, dtype of input. It may be the slice of `out` that is written.
        stride, padding, dilation: one number or (vertical, horizontal).
        activation: "none", "relu" (keeps NaN) or "sigmoid".
        out: (N, at least out_channel_offset + out, OH, OW), channels_last memory, dtype of input. Channels
            from out_channel_offset on are written, all others stay as they are. It must not overlap what is
            read; the input may be other channels of the same buffer.
        allow_tf32: float32 products on tensor cores with 10-bit mantissas. None follows
            `torch.backends.cudnn.conv.fp32_precision`, as torch's own convolution does. Sums are float32.
        tile: forces a tile instead of the modelled best.

    Returns:
        The (N, out, OH, OW) result: a channels_last tensor, or a view of the slice of `out`.

    Raises:
        RuntimeError: arguments that do not fit; names the argument and the shapes, nothing is written.
    """
    sources = {"bias": bias, "scale": scale, "residual": residual}
    check_tensors(input, weight, sources | {"out": out}, can_run_on_cpu=INTERPRETED)
    sizes = geometry(input, weight, stride, padding, dilation, groups)
    check_epilogue(sizes, bias, scale, residual, activation)
    if out is None:
        require(out_channel_offset == 0, f"out_channel_offset is {out_channel_offset}, but out is absent")
        target = torch.empty(
            sizes.output_shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last
        )
    else:
        target = output_slice(sizes, out, out_channel_offset, {"input": input, "weight": weight} | sources)
    if target.numel() > 0:
        if allow_tf32 is None:
            allow_tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"
        precision = "ieee" if input.dtype == torch.float32 and not allow_tf32 else "tf32"
        _launch(sizes, input, weight, bias, scale, residual, activation, target, precision, tile)
    return target


def _launch(
    sizes: Geometry,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    activation: str,
    target: Tensor,
    precision: str,
    tile: Tile | None,
) -> None:
    input, x_stride = as_nhwc(input)
    weight, weight_stride = as_nhwc(weight)
    if weight_stride != sizes.in_channels:  # a slice: the kernel wants an output channel's weights in one row
        weight = weight.clone(memory_format=torch.channels_last)
    residual, residual_stride = (None, 0) if residual is None else as_nhwc(residual)
    _, y_stride = as_nhwc(target)
    if tile is None:
        # Triton reads 16 bytes at once where it knows that addresses and channel counts are multiples of 16.
        multiples = (sizes.in_channels, x_stride, input.data_ptr(), weight.data_ptr())
        access = Access(all(number % 16 == 0 for number in multiples), precision)
        tile = choose_tile(sizes, input.element_size(), access, machine_of(input.device))
    n_tiles = triton.cdiv(sizes.out_channels, tile.block_n) * sizes.groups
    programs = triton.cdiv(sizes.pixels, tile.block_m) * n_tiles
    require(programs < 2**31, f"{programs} programs, more than a grid can have: split the batch")
    with torch.cuda.device_of(input):
        _conv2d_forward_kernel[(programs,)](
            input,
            weight,
            target,
            None if bias is None else bias.contiguous(),
            None if scale is None else scale.contiguous(),
            residual,
            sizes.pixels,
            *(sizes.in_h, sizes.in_w, sizes.out_h, sizes.out_w),
            *(sizes.in_channels, sizes.out_channels, sizes.groups),
            *(x_stride, y_stride, residual_stride),
            *(*sizes.stride, *sizes.padding, *sizes.dilation),
            KERNEL_H=sizes.kernel_h,
            KERNEL_W=sizes.kernel_w,
            ACTIVATION=activation,
            PRECISION=precision,
            ACROSS_TAPS=tile.spans_taps(sizes),
            # The interpreter multiplies bfloat16 as if its bits were integers.
            UPCAST=INTERPRETED and input.dtype == torch.bfloat16,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
