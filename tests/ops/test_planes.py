"""Images of planes, one channel behind the other: operators turn them into pixels of adjacent channels."""

import itertools

import pytest
import torch

from cnnfast import ops

from .support import needs_extension

pytestmark = needs_extension
SHAPES = itertools.product((1, 3), (7, 8, 16, 17, 33, 50), ((8, 1), (3, 5), (9, 8), (16, 16), (23, 13)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("images, channels, size", list(SHAPES), ids=str)
def test_planes_give_what_pixels_give(images, channels, size, dtype):
    x = torch.randn(images, channels, *size).to(dtype)
    grad = torch.randn(images, channels, *size).to(dtype)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        own = x.clone(memory_format=layout).requires_grad_()
        output = ops.group_norm2d(own, 1, activation="relu")
        output.backward(grad.contiguous(memory_format=layout))
        results.append((output, own.grad))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_planes_with_gaps_odd_values_and_threads(dtype):
    x = torch.randn(3, 19, 6, 7).to(dtype)
    x[0, 3, 2, 2], x[1, 18, 5, 6], x[2, 0, 0, 0] = float("nan"), float("inf"), -0.0
    gaps = torch.full((6, 40, 6, 7), float("nan"), dtype=dtype)
    gaps[::2, 1:39:2] = x
    expected = ops.batch_norm2d(
        x.contiguous(memory_format=torch.channels_last), None, None, torch.zeros(19), torch.ones(19), eps=0.0
    )
    for planes in (x, gaps[::2, 1:39:2], x.transpose(2, 3).contiguous().transpose(2, 3)):
        found = ops.batch_norm2d(planes, None, None, torch.zeros(19), torch.ones(19), eps=0.0)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(found, x, equal_nan=True)
