"""Mean and variance of every channel from the means and squares of parts of the pixels.

Each level joins up to ROWS parts into one; the tree has a fixed shape, so the result is the same in every
run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnfast.triton.launch import divide_up, launch
from cnnfast.triton.signature import Signature, compiler_options, make_signature

SIZES = ("parts", "channels", "part_pixels", "pixels")
ROWS = 128
COLUMNS = 32
NUM_WARPS = 8


@triton.jit
def mean_error(distances, count):
    """What a mean is short of, from the sum of the distances from it: far from zero a sum of many values has
    lost digits that the distances still have. An infinite mean stays."""
    error = distances / count
    return tl.where(error == error, error, 0.0)


@triton.jit(do_not_specialize=SIZES)
def combine_kernel(
    parts_ptr,  # (parts, 2, channels): means, sums of squares around them
    joined_ptr,  # the same of fewer parts; of the last level the mean and the variance
    parts,
    channels,
    part_pixels,  # every part has as many but the last
    pixels,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    blocks = tl.cdiv(channels, COLUMNS)
    chunk = tl.program_id(0) // blocks
    part = chunk * ROWS + tl.arange(0, ROWS)
    c = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    c_inside = c < channels
    inside = (part < parts)[:, None] & c_inside[None, :]
    first = part.to(tl.int64) * part_pixels
    count = tl.maximum(tl.minimum(pixels - first, part_pixels), 0).to(tl.float32)
    chunk_first = chunk.to(tl.int64) * ROWS * part_pixels
    total = tl.minimum(pixels - chunk_first, ROWS * part_pixels.to(tl.int64)).to(tl.float32)

    at = parts_ptr + part.to(tl.int64)[:, None] * 2 * channels + c[None, :]
    mean = tl.load(at, mask=inside, other=0.0)
    squares = tl.load(at + channels, mask=inside, other=0.0)
    joined = tl.sum(mean * count[:, None], 0) / total
    distance = mean - joined[None, :]
    error = mean_error(tl.sum(count[:, None] * distance, 0), total)
    joined_squares = tl.sum(squares + count[:, None] * distance * distance, 0) - total * error * error
    joined += error
    if LAST:
        joined_squares /= total
    to = joined_ptr + chunk.to(tl.int64) * 2 * channels + c
    tl.store(to, joined, mask=c_inside)
    tl.store(to + channels, joined_squares, mask=c_inside)


def signature(last: bool) -> Signature:
    """How `combine_kernel` is compiled."""
    pointers = {"parts_ptr": "fp32", "joined_ptr": "fp32"}
    return make_signature(combine_kernel, {}, pointers, _constants(last), False, compiler_options(NUM_WARPS))


def combine(parts: Tensor, part_pixels: int, pixels: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, float32 (C,).

    Args:
        parts: (P, 2, C) float32: of every part the mean and the sum of squares around it. Part p has the
            pixels from p * part_pixels on, the last one what is left.
        part_pixels, pixels: of a part and of all; without pixels the results are NaN, as torch.var_mean's.

    Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance: analysis and
    recommendations" (pairwise joining, corrected two-pass sums).
    """
    channels = parts.shape[2]
    if pixels == 0:
        return tuple(parts.new_full((2, channels), torch.nan))
    while True:
        chunks = divide_up(parts.shape[0], ROWS)
        joined = parts.new_empty((chunks, 2, channels))
        launch(
            *("statistics", combine_kernel, chunks * divide_up(channels, COLUMNS)),
            {"parts_ptr": parts, "joined_ptr": joined, "parts": parts.shape[0]}
            | {"channels": channels, "part_pixels": part_pixels, "pixels": pixels},
            _constants(chunks == 1),
            compiler_options(NUM_WARPS),
        )
        parts, part_pixels = joined, ROWS * part_pixels
        if chunks == 1:
            return tuple(parts[0])


def _constants(last: bool) -> dict[str, object]:
    return {"LAST": last, "ROWS": ROWS, "COLUMNS": COLUMNS}
