"""Pieces that several kernels share."""

import triton
import triton.language as tl


@triton.jit
def reduction_block(step, channels, taps, BLOCK_K: tl.constexpr, ACROSS_TAPS: tl.constexpr):
    """Tap, channel and validity of the step's BLOCK_K summands."""
    if ACROSS_TAPS:
        # Few channels: one step spans several taps, or most of it would be padding.
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        return k // channels, k % channels, k < taps * channels
    else:
        # One tap a step: one position for the whole block, and its channels are adjacent in memory.
        blocks = tl.cdiv(channels, BLOCK_K)
        tap = step // blocks + tl.zeros((1,), tl.int32)
        channel = (step % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
        return tap, channel, channel < channels


@triton.jit
def reduction_steps(channels, taps, BLOCK_K: tl.constexpr, ACROSS_TAPS: tl.constexpr):
    if ACROSS_TAPS:
        return tl.cdiv(taps * channels, BLOCK_K)
    else:
        return taps * tl.cdiv(channels, BLOCK_K)


@triton.jit
def multiple(x, ALIGN: tl.constexpr):
    """x, which is a multiple of ALIGN, in a form from which the compiler sees that it is."""
    return x // ALIGN * ALIGN


@triton.jit
def relu(x):
    return tl.where(x < 0, 0.0, x)  # a comparison, not a maximum: NaN stays NaN


@triton.jit
def normalise(x, scale, shift, inside, RELU: tl.constexpr):
    """The prologue: x * scale + shift and ReLU, in x's type. Padding stays 0, or shift would leak into it."""
    y = x.to(tl.float32) * scale + shift
    if RELU:
        y = relu(y)
    return tl.where(inside, y, 0.0).to(x.dtype)


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """acc + a @ b in float32. UPCAST: the interpreter multiplies bfloat16 as if its bits were integers."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


INTERPRETED = not isinstance(relu, triton.runtime.JITFunction)
