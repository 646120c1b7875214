"""From checked tensors to a launch: what all launchers share."""

from math import gcd

import torch
import triton
from torch import Tensor

from cnnfast.triton.conv2d_arguments import Geometry, require
from cnnfast.triton.nhwc import as_nhwc
from cnnfast.triton.signature import VECTOR_BYTES

divide_up = triton.cdiv


def place(images: dict[str, Tensor | None]) -> tuple[dict[str, Tensor | None], dict[str, int]]:
    """Kernels' arguments {"x_ptr": tensor in NHWC memory, ...} and {"x_stride": elements from pixel to pixel,
    ...} of images {"x": tensor, ...}; None and 0 for those that are absent."""
    placed = {name: (None, 0) if image is None else as_nhwc(image) for name, image in images.items()}
    pointers = {f"{name}_ptr": tensor for name, (tensor, _) in placed.items()}
    return pointers, {f"{name}_stride": stride for name, (_, stride) in placed.items()}


def is_aligned(pointers: dict[str, Tensor | None], strides: dict[str, int], sizes: Geometry) -> bool:
    """Whether 16-byte accesses fit: addresses are multiples, and so are the counts of elements."""
    present = [tensor for tensor in pointers.values() if tensor is not None]
    elements = VECTOR_BYTES // present[0].element_size()
    count = gcd(sizes.in_channels, sizes.out_channels, *strides.values())
    return count % elements == 0 and all(tensor.data_ptr() % VECTOR_BYTES == 0 for tensor in present)


def rows_of_weights(weight: Tensor, sizes: Geometry) -> Tensor:
    """The weight with all taps and input channels of an output channel in one row: channels_last memory."""
    weight, stride = as_nhwc(weight)
    if stride != sizes.in_channels:  # a slice
        weight = weight.clone(memory_format=torch.channels_last)
    return weight


def vectors(**tensors: Tensor | None) -> dict[str, Tensor | None]:
    """Arguments of parameters with one element per channel."""
    return {f"{name}_ptr": None if t is None else t.contiguous() for name, t in tensors.items()}


def launch(
    operator: str,
    kernel,
    programs: int,
    arguments: dict[str, Tensor | int | None],
    constants: dict[str, object],
    options: dict[str, int | str],
) -> None:
    """Runs `programs` programs on the device of the kernel's first argument, on its current stream.

    arguments, by name, may be more than the kernel takes.
    """
    require(operator, programs < 2**31, f"{programs} programs, more than a grid can have: split the batch")
    passed = [arguments[name] for name in kernel.arg_names if name not in constants]
    with torch.cuda.device_of(passed[0]):
        kernel[(programs,)](*passed, **constants, **options)
