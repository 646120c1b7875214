"""From checked tensors to a launch: what all launchers share."""

from math import gcd

import torch
import triton
from torch import Tensor

from cnnfast.triton.conv2d_arguments import Geometry, require
from cnnfast.triton.nhwc import as_nhwc
from cnnfast.triton.signature import VECTOR_BYTES

divide_up = triton.cdiv


def is_aligned(tensors: tuple[Tensor | None, ...], counts: tuple[int, ...]) -> bool:
    """Whether 16-byte accesses fit: addresses are multiples, and so are the counts of elements."""
    present = [tensor for tensor in tensors if tensor is not None]
    elements = VECTOR_BYTES // present[0].element_size()
    return gcd(*counts) % elements == 0 and all(tensor.data_ptr() % VECTOR_BYTES == 0 for tensor in present)


def rows_of_weights(weight: Tensor, sizes: Geometry) -> Tensor:
    """The weight with all taps and input channels of an output channel in one row: channels_last memory."""
    weight, stride = as_nhwc(weight)
    if stride != sizes.in_channels:  # a slice
        weight = weight.clone(memory_format=torch.channels_last)
    return weight


def vector(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def launch(operator: str, kernel, programs: int, *arguments, **constants) -> None:
    """Runs `programs` programs on the device of the first argument, on its current stream."""
    require(operator, programs < 2**31, f"{programs} programs, more than a grid can have: split the batch")
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **constants)
