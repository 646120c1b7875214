"""Layouts and overlaps against the addresses of every element."""

import itertools
import random

import pytest
import torch

from cnnfast.triton.nhwc import as_nhwc, may_overlap, pixel_stride


def offsets(tensor: torch.Tensor) -> set[int]:
    """Byte addresses of every element's first and last byte."""
    sizes, strides, item = tensor.shape, tensor.stride(), tensor.element_size()
    positions = itertools.product(*map(range, sizes))
    first = [
        tensor.data_ptr() + item * sum(p * s for p, s in zip(at, strides, strict=True)) for at in positions
    ]
    return {address for start in first for address in (start, start + item - 1)}


def is_nhwc(tensor: torch.Tensor, stride: int) -> bool:
    _, _, height, width = tensor.shape
    return all(
        n * tensor.stride(0) + c * tensor.stride(1) + h * tensor.stride(2) + w * tensor.stride(3)
        == ((n * height + h) * width + w) * stride + c
        for n, c, h, w in itertools.product(*map(range, tensor.shape))
    )


def random_views(count: int, seed: int):
    """Slices, crops, permutations and steps of one small buffer, many of them with dimensions of size 1."""
    generator = random.Random(seed)
    buffer = torch.arange(4 * 5 * 6 * 7, dtype=torch.float32)
    for _ in range(count):
        sizes = [generator.choice((1, 2, 3, 4)) for _ in range(4)]
        view = buffer[: sizes[0] * sizes[1] * sizes[2] * sizes[3]].view(sizes)
        view = view.permute(generator.choice(((0, 3, 1, 2), (0, 3, 1, 2), (0, 1, 2, 3), (0, 2, 3, 1))))
        for dimension in range(4):
            size = view.shape[dimension]
            start = generator.randrange(size)
            if generator.random() < 0.4:
                view = view.narrow(dimension, start, generator.randint(1, size - start))
        yield view


def test_pixel_stride_tells_nhwc_order():
    views = list(random_views(3000, seed=0))
    found = [pixel_stride(view) for view in views]
    for view, stride in zip(views, found, strict=True):
        if stride is None:
            assert not any(is_nhwc(view, candidate) for candidate in range(300)), (view.shape, view.stride())
        else:
            assert is_nhwc(view, stride), (view.shape, view.stride(), stride)
    assert 500 < sum(stride is None for stride in found) < 2500


def test_pixel_stride_ignores_dimensions_of_size_1():
    assert pixel_stride(torch.zeros(2, 1, 5, 7)) == 1
    assert pixel_stride(torch.zeros(3, 8, 1, 1)) == 8
    assert pixel_stride(torch.zeros(1, 8, 1, 1).as_strided((1, 8, 1, 1), (999, 1, 77, 55))) == 8
    assert pixel_stride(torch.zeros(2, 8, 5, 7)) is None


def test_as_nhwc_copies_only_what_it_must():
    image = torch.randn(2, 9, 4, 5)
    last = image.to(memory_format=torch.channels_last)
    part = last[:, 2:7]
    assert as_nhwc(part)[0].data_ptr() == part.data_ptr() and as_nhwc(part)[1] == 9
    copy, stride = as_nhwc(image)
    assert stride == 9 and torch.equal(copy, image) and copy.is_contiguous(memory_format=torch.channels_last)


def test_may_overlap_never_misses_a_shared_element():
    views = list(random_views(300, seed=1))
    apart = 0
    for first, second in itertools.pairwise(views):
        if not may_overlap(first, second):
            apart += 1
            assert offsets(first).isdisjoint(offsets(second)), (first.stride(), second.stride())
    assert apart > 10


@pytest.mark.parametrize("first", range(0, 8, 3))
@pytest.mark.parametrize("second", range(8))
def test_may_overlap_of_channel_slices_is_exact(first, second):
    buffer = torch.zeros(2, 12, 3, 5).to(memory_format=torch.channels_last)
    one, two = buffer[:, first : first + 3], buffer[:, second : second + 4]
    shared = not offsets(one).isdisjoint(offsets(two))
    assert may_overlap(one, two) == shared and may_overlap(two, one) == shared


def test_may_overlap_where_slices_cannot_be_compared():
    buffer = torch.zeros(2, 12, 3, 5).to(memory_format=torch.channels_last)
    left, right = buffer[:, :4], buffer[:, 8:]
    assert not may_overlap(left, right)
    narrow = torch.zeros(0, dtype=torch.float16).set_(
        buffer.untyped_storage(), 1, (2, 12, 3, 5), (720 // 4, 1, 60, 12)
    )
    assert may_overlap(left, narrow), "other element sizes"
    memory = bytearray(4 * 500)
    whole = torch.frombuffer(memory, dtype=torch.float32).as_strided((2, 4, 3, 5), (180, 1, 60, 12))
    half_off = torch.frombuffer(memory, dtype=torch.float32, offset=18, count=400)
    assert may_overlap(whole, half_off.as_strided((2, 7, 3, 5), (180, 1, 60, 12))), "between two elements"
    other_stride = buffer.as_strided((1, 4, 2, 3), (0, 1, 39, 13), 4)
    assert may_overlap(left, other_stride), "other pixel strides"
    assert not may_overlap(torch.zeros(8), torch.zeros(8))
    assert not may_overlap(buffer[:0], buffer)
