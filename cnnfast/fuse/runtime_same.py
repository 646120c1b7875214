"""What generated forwards call in front of layers that pad by the image's size, or compute their weight.

See runtime.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnfast.fuse.foreign import standardised


def standardised_weight(weight: Tensor, gain: Tensor | None, scale: float, eps: float) -> Tensor:
    """The weight of a convolution that standardises it; gradients go through it."""
    return standardised(weight, gain, scale, eps)


def same_sides(x: Tensor, kernel_size: list[int], stride: list[int], dilation: list[int]) -> list[int]:
    """Left, right, top, bottom: what ceil(size / stride) positions need, the odd one at the end."""
    sides: list[int] = []
    for i in (1, 0):
        size = x.size(i - 2)
        padding = (size + stride[i] - 1) // stride[i] * stride[i] - stride[i]
        padding = padding + dilation[i] * (kernel_size[i] - 1) + 1 - size
        padding = _not_negative(padding)
        sides.append(padding // 2)
        sides.append(padding - padding // 2)
    return sides


def _not_negative(padding: int) -> int:
    if not torch.jit.is_scripting():
        if torch.jit.is_tracing():  # a tensor there: other sizes then have their own padding
            return torch.clamp(padding, min=0)
    return max(padding, 0)


def uneven(sides: list[int]) -> list[int]:
    """What has to be put around an image first: nothing where opposite sides are equal."""
    return [] if _are_even(sides) else sides


def even(sides: list[int]) -> list[int]:
    """The padding of the operator, height and width."""
    return [sides[2], sides[0]] if _are_even(sides) else [0, 0]


def _are_even(sides: list[int]) -> bool:
    if not torch.jit.is_scripting():
        if torch.jit.is_tracing():
            return False
    return sides[0] == sides[1] and sides[2] == sides[3]


def padded_with_zeros(x: Tensor, sides: list[int]) -> Tensor:
    """The image with a border of zeros."""
    return F.pad(x, sides)


def padded_with_least(x: Tensor, sides: list[int]) -> Tensor:
    """The image with a border that is no maximum."""
    return F.pad(x, sides, "constant", float("-inf"))
