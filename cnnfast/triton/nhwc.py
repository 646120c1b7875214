"""Tensors as a kernel sees them: a base pointer, a channel count and a pixel stride (NHWC memory)."""

import torch
from torch import Tensor


def pixel_stride(tensor: Tensor) -> int | None:
    """Elements from one pixel to the next of an N×C×H×W tensor that lies in NHWC order, else None.

    Channels must be adjacent and pixels equally spaced over the whole tensor, as they are in channels_last
    tensors and in channel slices of them. Strides of dimensions of size 1 mean nothing and are ignored.
    """
    batch, channels, height, width = tensor.shape
    if channels > 1 and tensor.stride(1) != 1:
        return None
    if width > 1:
        stride = tensor.stride(3)
    elif height > 1:
        stride = tensor.stride(2)
    else:
        stride = tensor.stride(0) if batch > 1 else channels
    rows_follow = height == 1 or tensor.stride(2) == stride * width
    images_follow = batch == 1 or tensor.stride(0) == stride * width * height
    return stride if rows_follow and images_follow else None


def as_nhwc(tensor: Tensor) -> tuple[Tensor, int]:
    """The tensor and its pixel stride; a channels_last copy where its own layout is not NHWC."""
    stride = pixel_stride(tensor)
    if stride is None:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
        stride = pixel_stride(tensor)
        assert stride is not None, f"channels_last tensor {tuple(tensor.shape)} has strides {tensor.stride()}"
    return tensor, stride


def may_overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors may share an element.

    False for certain where the address ranges are apart, and for disjoint channel slices of one NHWC buffer
    (an input and an output inside one concatenation buffer). Any other interleaving counts as an overlap.
    """
    start, end = _address_range(first)
    other_start, other_end = _address_range(second)
    if end <= other_start or other_end <= start:
        return False
    if first.dim() != 4 or second.dim() != 4 or first.element_size() != second.element_size():
        return True
    stride = pixel_stride(first)
    if stride is None or stride == 0 or stride != pixel_stride(second):
        return True
    distance, misaligned = divmod(other_start - start, first.element_size())
    distance %= stride
    return misaligned != 0 or distance < first.shape[1] or distance + second.shape[1] > stride


def _address_range(tensor: Tensor) -> tuple[int, int]:
    if tensor.numel() == 0:
        return tensor.data_ptr(), tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
