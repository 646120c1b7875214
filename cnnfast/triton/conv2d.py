"""Convolution forward as an implicit matrix product on NHWC memory.

Rows are output pixels, columns output channels, the sum runs over taps and input channels; no im2col buffer
exists. Batch norm and ReLU in front, the epilogue, the channel slice of the output and the sums that the next
batch norm needs are part of the load and of the store.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnfast.triton import statistics
from cnnfast.triton.blocks import (
    INTERPRETED,
    multiple,
    multiply,
    normalise,
    reduction_block,
    reduction_steps,
    relu,
)
from cnnfast.triton.conv2d_arguments import (
    ACTIVATIONS,
    Geometry,
    Prologue,
    check_activation,
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
from cnnfast.triton.statistics import mean_error
from cnnfast.triton.tiles import Access, Tile, choose_tile, forward_product, machine_of

SIZES = (
    "pixels", "in_h", "in_w", "out_h", "out_w", "in_channels", "out_channels", "groups",
    "kernel_h", "kernel_w", "x_stride", "y_stride", "residual_stride",
    "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w",
)  # fmt: skip
VECTORS = ("bias_ptr", "scale_ptr", "pre_scale_ptr", "pre_shift_ptr", "parts_ptr")


@triton.jit
def _activate(y, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        y = relu(y)
    elif ACTIVATION == "sigmoid":
        y = 1.0 / (1.0 + tl.exp(-y))
    return y


@triton.jit
def _store_parts(parts_ptr, y, m_tile, c, channels, pixels, m_inside, n_inside, BLOCK_M: tl.constexpr):
    """Mean of the tile's pixels and sum of squares around it: float32, (tiles, 2, channels)."""
    count = tl.minimum(pixels - m_tile * BLOCK_M, BLOCK_M).to(tl.float32)
    inside = m_inside[:, None]
    mean = tl.sum(tl.where(inside, y, 0.0), 0) / count
    distance = tl.where(inside, y - mean[None, :], 0.0)
    error = mean_error(tl.sum(distance, 0), count)
    part = parts_ptr + m_tile.to(tl.int64) * 2 * channels + c
    tl.store(part, mean + error, mask=n_inside)
    tl.store(part + channels, tl.sum(distance * distance, 0) - count * error * error, mask=n_inside)


@triton.jit
def _store_columns(
    y_ptr,
    residual_ptr,
    bias_ptr,
    scale_ptr,
    parts_ptr,
    y_stride,
    residual_stride,
    acc,  # BLOCK_M pixels by some channels
    m,
    n,
    m_tile,
    pixels,
    group,
    out_channels,
    channels,  # of all groups
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The epilogue of sums, and what the next batch norm needs of them."""
    m_inside = m < pixels
    n_inside = n < out_channels
    c = group * out_channels + n
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + c, mask=n_inside, other=0.0).to(tl.float32)[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + c, mask=n_inside, other=0.0).to(tl.float32)[None, :]
    inside = m_inside[:, None] & n_inside[None, :]
    pixel = m.to(tl.int64)[:, None]
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + pixel * residual_stride + c[None, :], mask=inside, other=0.0)
        acc += residual.to(tl.float32)
    y = _activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + pixel * y_stride + c[None, :], y, mask=inside)
    if parts_ptr is not None:  # of the rounded values: what the next layer will read
        _store_parts(parts_ptr, y.to(tl.float32), m_tile, c, channels, pixels, m_inside, n_inside, BLOCK_M)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=VECTORS)
def conv2d_kernel(
    x_ptr,
    w_ptr,
    y_ptr,
    residual_ptr,
    bias_ptr,
    scale_ptr,
    pre_scale_ptr,
    pre_shift_ptr,
    parts_ptr,
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
    x_stride,  # elements from pixel to pixel
    y_stride,
    residual_stride,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    ALIGN: tl.constexpr,  # divides all channel counts and pixel strides
    POINTWISE: tl.constexpr,
    ACROSS_TAPS: tl.constexpr,
    PRE_RELU: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HALVES: tl.constexpr,  # columns are finished in two halves
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    in_channels = multiple(in_channels, ALIGN)
    out_channels = multiple(out_channels, ALIGN)
    x_stride = multiple(x_stride, ALIGN)
    y_stride = multiple(y_stride, ALIGN)
    taps = kernel_h * kernel_w
    # Channels first: programs that run side by side read the same pixels, and the weight stays in L2 anyway.
    program = tl.program_id(0)
    n_tiles = tl.cdiv(out_channels, BLOCK_N)
    group = (program // n_tiles) % groups
    m_tile = program // (n_tiles * groups)
    m = m_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (program % n_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_inside = m < pixels
    n_inside = n < out_channels

    # Position of tap (0, 0), which may lie outside the image. Element offsets are 64-bit from here on.
    y0 = (m // out_w) % out_h * stride_h - pad_h
    x0 = m % out_w * stride_w - pad_w
    image = (m // out_w // out_h).to(tl.int64)
    first_pixel = (image * in_h + y0) * in_w + x0
    x_rows = x_ptr + first_pixel[:, None] * x_stride + group.to(tl.int64) * in_channels
    row_length = taps * in_channels
    w_columns = w_ptr + (group * out_channels + n).to(tl.int64)[None, :] * row_length

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, reduction_steps(in_channels, taps, BLOCK_K, ACROSS_TAPS)):
        tap, channel, k_inside = reduction_block(step, in_channels, taps, BLOCK_K, ACROSS_TAPS)
        inside = m_inside[:, None] & k_inside[None, :]
        if POINTWISE:
            x_offset = channel
            w_offset = channel
        else:
            down = tap // kernel_w * dilation_h
            right = tap % kernel_w * dilation_w
            row = y0[:, None] + down[None, :]
            column = x0[:, None] + right[None, :]
            inside &= (row >= 0) & (row < in_h) & (column >= 0) & (column < in_w)
            x_offset = (down * in_w + right).to(tl.int64) * x_stride + channel
            w_offset = tap * in_channels + channel
        x = tl.load(x_rows + x_offset[None, :], mask=inside, other=0.0)
        w = tl.load(w_columns + w_offset[:, None], mask=k_inside[:, None] & n_inside[None, :], other=0.0)
        if pre_scale_ptr is not None:
            place = group * in_channels + channel
            scale = tl.load(pre_scale_ptr + place, mask=k_inside, other=0.0).to(tl.float32)
            shift = tl.load(pre_shift_ptr + place, mask=k_inside, other=0.0).to(tl.float32)
            x = normalise(x, scale[None, :], shift[None, :], inside, PRE_RELU)
        acc = multiply(x, w, acc, PRECISION, UPCAST)

    channels = groups * out_channels
    if residual_ptr is not None:
        residual_stride = multiple(residual_stride, ALIGN)
    if HALVES:
        # A thread has a whole row of tensor memory, and beside it a scale, a bias and a residual of every
        # column: all at once would not fit its registers.
        left, right = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        n = (program % n_tiles) * BLOCK_N + tl.arange(0, BLOCK_N // 2)
        _store_columns(
            y_ptr, residual_ptr, bias_ptr, scale_ptr, parts_ptr, y_stride, residual_stride,
            left, m, n, m_tile, pixels, group, out_channels, channels, ACTIVATION, BLOCK_M,
        )  # fmt: skip
        _store_columns(
            y_ptr, residual_ptr, bias_ptr, scale_ptr, parts_ptr, y_stride, residual_stride,
            right, m, n + BLOCK_N // 2, m_tile, pixels, group, out_channels, channels, ACTIVATION, BLOCK_M,
        )  # fmt: skip
    else:
        _store_columns(
            y_ptr, residual_ptr, bias_ptr, scale_ptr, parts_ptr, y_stride, residual_stride,
            acc, m, n, m_tile, pixels, group, out_channels, channels, ACTIVATION, BLOCK_M,
        )  # fmt: skip


def signature(
    dtype: torch.dtype,
    tile: Tile,
    *,
    aligned: bool = True,
    pointwise: bool = False,
    across_taps: bool = False,
    precision: str = "tf32",
    bias: bool = False,
    scale: bool = False,
    residual: bool = False,
    activation: str = "none",
    prologue: bool = False,
    pre_relu: bool = True,
    with_statistics: bool = False,
) -> Signature:
    """How `conv2d_kernel` is compiled. Vectors with one element per channel are float32 in these variants."""
    name = NAMES[dtype]
    images = {"x_ptr": name, "w_ptr": name, "y_ptr": name, "residual_ptr": name if residual else None}
    present = {"bias_ptr": bias, "scale_ptr": scale, "pre_scale_ptr": prologue, "pre_shift_ptr": prologue}
    present["parts_ptr"] = with_statistics
    return make_signature(
        conv2d_kernel,
        images,
        {name: "fp32" if here else None for name, here in present.items()},
        _constants(
            dtype, tile, aligned, pointwise, across_taps, precision, activation, pre_relu and prologue
        ),
        aligned,
        tile_options(tile),
    )


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
    pre_scale: Tensor | None = None,
    pre_shift: Tensor | None = None,
    pre_activation: str = "none",
    allow_tf32: bool | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """`activation(conv(pre(input), weight) * scale[c] + bias[c] + residual)` on a CUDA device, forward only.

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
        pre_scale, pre_shift: (C,), dtype of input or float32, both or neither: pre(input) is
            `pre_activation(input * pre_scale[c] + pre_shift[c])`, rounded to the input's dtype; padding is 0
            behind it, as it is between a batch norm and a convolution.
        pre_activation: "none" or "relu".
        allow_tf32: float32 products on tensor cores with 10-bit mantissas. None follows
            `torch.backends.cudnn.conv.fp32_precision`, as torch's own convolution does. Sums are float32.
        tile: forces a tile instead of the modelled best.

    Returns:
        The (N, out, OH, OW) result: a channels_last tensor, or a view of the slice of `out`.

    Raises:
        RuntimeError: arguments that do not fit; names the argument and the shapes, nothing is written.
    """
    target, *_ = _convolve(
        "conv2d",
        *(input, weight, bias, scale, residual),
        *(stride, padding, dilation, groups, activation, out, out_channel_offset),
        Prologue(pre_scale, pre_shift, pre_activation),
        *(allow_tf32, tile, False),
    )
    return target


def conv2d_statistics(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    stride: int | Sequence[int] = (1, 1),
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
    groups: int = 1,
    out: Tensor | None = None,
    out_channel_offset: int = 0,
    *,
    pre_scale: Tensor | None = None,
    pre_shift: Tensor | None = None,
    pre_activation: str = "none",
    allow_tf32: bool | None = None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = conv(pre(input), weight) + bias + residual, and its mean and variance over N, OH and OW.

    Arguments are those of `conv2d`. Every tile writes the mean of its pixels and the sum of squares around
    that mean; `statistics.combine` joins them in a fixed order. The statistics are of y as stored, in its
    dtype.

    Returns:
        y (N, out, OH, OW); mean and biased variance, float32 (out,). NaN where the batch is empty.

    Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance: analysis and
    recommendations".
    """
    target, parts, part_pixels, pixels = _convolve(
        "conv2d_statistics",
        *(input, weight, bias, None, residual),
        *(stride, padding, dilation, groups, "none", out, out_channel_offset),
        Prologue(pre_scale, pre_shift, pre_activation),
        *(allow_tf32, tile, True),
    )
    mean, var = statistics.combine(parts, part_pixels, pixels)
    return target, mean, var


def _convolve(
    operator: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    activation: str,
    out: Tensor | None,
    out_channel_offset: int,
    prologue: Prologue,
    allow_tf32: bool | None,
    tile: Tile | None,
    with_statistics: bool,
) -> tuple[Tensor, Tensor | None, int, int]:
    """The result; with statistics its parts, the pixels of a part and of all."""
    images = {"input": input, "weight": weight, "residual": residual}
    vectors = {"bias": bias, "scale": scale} | prologue.tensors()
    check_tensors(operator, images | {"out": out}, vectors, can_run_on_cpu=INTERPRETED)
    sizes = geometry(operator, input.shape, weight.shape, stride, padding, dilation, groups)
    shape = sizes.output_shape
    check_shapes(
        operator, [("bias", bias, shape[1:2]), ("scale", scale, shape[1:2]), ("residual", residual, shape)]
    )
    check_activation(operator, "activation", activation, ACTIVATIONS)
    check_prologue(operator, sizes, prologue)
    if out is None:
        text = f"out_channel_offset is {out_channel_offset}, but out is absent"
        require(operator, out_channel_offset == 0, text)
        target = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)
    else:
        target = output_slice(operator, shape, out, out_channel_offset, images | vectors, "residual")
    if target.numel() == 0:
        empty = torch.empty((0, 2, shape[1]), device=input.device) if with_statistics else None
        return target, empty, 1, 0
    precision = precision_of(input.dtype, allow_tf32)
    parts, part_pixels = _launch(
        *(operator, sizes, input, weight, bias, scale, residual, activation, target, prologue),
        *(precision, tile, with_statistics),
    )
    return target, parts, part_pixels, sizes.pixels


def _launch(
    operator: str,
    sizes: Geometry,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    activation: str,
    target: Tensor,
    prologue: Prologue,
    precision: str,
    tile: Tile | None,
    with_statistics: bool,
) -> tuple[Tensor | None, int]:
    pointers, strides = place({"x": input, "y": target, "residual": residual})
    pointers["w_ptr"] = rows_of_weights(weight, sizes)
    aligned = is_aligned(pointers, strides, sizes)
    product = forward_product(sizes)
    if tile is None:
        access = Access(aligned, precision, prologue.scale is not None)
        tile = choose_tile(product, input.element_size(), access, machine_of(input.device))
    m_tiles = divide_up(sizes.pixels, tile.block_m)
    parts = None
    if with_statistics:
        parts = torch.empty((m_tiles, 2, sizes.output_shape[1]), device=input.device)
    channels = vectors(bias=bias, scale=scale, **prologue.tensors())
    constants = _constants(
        *(input.dtype, tile, aligned, sizes.pointwise, tile.spans_taps(product), precision),
        *(activation, prologue.activation == "relu"),
    )
    launch(
        operator,
        conv2d_kernel,
        m_tiles * divide_up(sizes.out_channels, tile.block_n) * sizes.groups,
        {**pointers, **channels, "parts_ptr": parts, **strides, **sizes.arguments()},
        constants,
        tile_options(tile),
    )
    return parts, tile.block_m


def _constants(
    dtype: torch.dtype,
    tile: Tile,
    aligned: bool,
    pointwise: bool,
    across_taps: bool,
    precision: str,
    activation: str,
    pre_relu: bool,
) -> dict[str, object]:
    return product_constants(dtype, tile, aligned, precision) | {
        "POINTWISE": pointwise,
        "ACROSS_TAPS": across_taps,
        "PRE_RELU": pre_relu,
        "ACTIVATION": activation,
        "HALVES": tile.halves,
    }
