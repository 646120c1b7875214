"""global_avg_pool2d against torch.nn.functional in float64, forward and backward."""

import pytest
import torch

from cnnfast import ops, reference

from .support import LAYOUTS, assert_near, doubles, gradients, in_layout, needs_extension, poison


def check(input, relative=1e-6, cotangent=None):
    input = input.detach().requires_grad_()
    exact = doubles([input])
    truth = reference.global_avg_pool2d(*exact)
    poison(truth.shape)
    output = ops.global_avg_pool2d(input)
    assert output.dtype == input.dtype
    assert_near(output, truth, relative)
    cotangent = torch.randn(truth.shape) if cotangent is None else cotangent
    poison(input.shape)
    (own,), (true,) = gradients(output, cotangent, [input]), gradients(truth, cotangent, exact)
    assert_near(own, true)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 7), (9, 8), (31, 33)], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 16, 35, 64, 65, 150])
def test_global_avg_pool2d(channels, size):
    for layout in ("nchw", "channels_last"):
        check(in_layout(torch.randn(3, channels, *size), layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 6, 7, 8), (1, 1, 1, 1), (3, 9, 4, 1), (1, 70, 1, 6)], ids=str)
def test_global_avg_pool2d_layout(shape, layout):
    check(in_layout(torch.randn(shape), layout))


def test_global_avg_pool2d_of_many_large_values():
    """Plain float32 summation would be off by more."""
    check(torch.rand(1, 3, 300, 301) + 1000.0)


def test_global_avg_pool2d_keeps_nan_and_infinities():
    input = torch.randn(2, 20, 9, 9)
    input[0, 3, 4, 4] = float("nan")
    input[0, 6, 0, 0] = float("inf")
    input[1, 7, 0, 0], input[1, 7, 0, 1] = float("inf"), -float("inf")
    for layout in ("nchw", "channels_last"):
        check(in_layout(input, layout))


def test_global_avg_pool2d_expanded_cotangent():
    check(torch.randn(2, 4, 5, 5), cotangent=torch.ones(1).expand(2, 4, 1, 1))


def test_global_avg_pool2d_batch_of_zero():
    input = torch.randn(0, 4, 8, 8, requires_grad=True)
    output = ops.global_avg_pool2d(input)
    assert output.shape == (0, 4, 1, 1)
    output.sum().backward()
    assert input.grad.shape == input.shape


@needs_extension
@pytest.mark.parametrize("layout", LAYOUTS)
def test_global_avg_pool2d_output_is_channels_last_memory_of_its_own(layout):
    input = in_layout(torch.randn(2, 5, 1, 1), layout)
    output = ops.global_avg_pool2d(input)
    assert torch.equal(output, input)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert output.untyped_storage().data_ptr() != input.untyped_storage().data_ptr()


def test_global_avg_pool2d_gradcheck():
    input = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.global_avg_pool2d, [input])


@needs_extension
def test_global_avg_pool2d_second_derivative_is_an_error():
    input = torch.randn(1, 2, 6, 6, requires_grad=True)
    output = ops.global_avg_pool2d(input).square()
    (first,) = torch.autograd.grad(output.sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="cnnfast::global_avg_pool2d"):
        torch.autograd.grad(first.sum(), input)
