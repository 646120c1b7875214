"""local_response_norm against torch.nn.functional in float64, forward and backward."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnnfast import ops, reference

from .support import LAYOUTS, assert_near, doubles, gradients, in_layout, needs_extension, poison


def check(input, *args, cotangent=None, relative=2e-6):
    input = input.detach().requires_grad_()
    exact = doubles([input])
    truth = reference.local_response_norm(*exact, *args)
    poison(truth.shape)
    output = ops.local_response_norm(input, *args)
    assert output.dtype == input.dtype
    assert_near(output, truth, relative)
    cotangent = torch.randn(truth.shape) if cotangent is None else cotangent
    poison(truth.shape)
    (own,), (true,) = gradients(output, cotangent, [input]), gradients(truth, cotangent, exact)
    assert_near(own, true, 1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 9, 20, 200])
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 7, 8, 9, 16, 17, 33, 96])
def test_local_response_norm(channels, size):
    for layout in ("nchw", "channels_last"):
        check(in_layout(3.0 * torch.randn(2, channels, 3, 4), layout), size, 0.7)


@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 0.0, 2.0, 0.6, -0.3])
@pytest.mark.parametrize("alpha, k", [(1e-4, 1.0), (0.5, 2.0), (1e-3, 0.01), (0.0, 1.0)])
def test_local_response_norm_parameters(alpha, beta, k):
    check(4.0 * torch.randn(2, 21, 5, 4), 5, alpha, beta, k, relative=5e-6)


def test_local_response_norm_of_alexnet():
    """The size of its first layer: more than one thread's work."""
    check(torch.randn(2, 96, 27, 27).relu(), 5, 1e-4, 0.75, 2.0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 1, 3, 4), (3, 19, 1, 1), (1, 17, 4, 1)], ids=str)
def test_local_response_norm_layout(shape, layout):
    cotangent = in_layout(torch.randn(shape), layout)
    check(in_layout(torch.randn(shape), layout), 3, 0.5, cotangent=cotangent)


def test_local_response_norm_expanded_cotangent():
    check(torch.randn(2, 9, 4, 4), 3, 0.5, cotangent=torch.ones(1).expand(2, 9, 4, 4))


def test_local_response_norm_special_values_stay_in_their_window():
    """A running sum would carry them through all later channels."""
    input = torch.randn(1, 40, 2, 2)
    input[0, 7, 0, 0] = float("nan")
    input[0, 20, 0, 1] = float("inf")
    input[0, 30, 1, 0] = 1e30  # its square is infinite
    output, truth = ops.local_response_norm(input, 5), reference.local_response_norm(input, 5)
    torch.testing.assert_close(output, truth, equal_nan=True)
    assert output[0, :, 0, 0].isnan().nonzero().flatten().tolist() == [5, 6, 7, 8, 9]


def test_local_response_norm_zeros_without_k():
    """0 / 0."""
    output = ops.local_response_norm(torch.zeros(1, 9, 2, 2), 3, 1.0, 0.75, 0.0)
    assert output.isnan().all()


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (2, 4, 0, 8), (2, 0, 4, 4)], ids=str)
def test_local_response_norm_without_values(shape):
    input = torch.randn(shape, requires_grad=True)
    output = ops.local_response_norm(input, 5)
    assert output.shape == shape
    output.sum().backward()
    assert input.grad.shape == shape


@needs_extension
@pytest.mark.parametrize("layout", LAYOUTS)
def test_local_response_norm_output_is_channels_last_memory_of_its_own(layout):
    input = in_layout(torch.randn(2, 5, 8, 8), layout)
    before = input.clone()
    output = ops.local_response_norm(input, 5, 0.0)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert output.untyped_storage().data_ptr() != input.untyped_storage().data_ptr()
    assert torch.equal(input, before)


@pytest.mark.parametrize("size", [2, 5])
def test_local_response_norm_gradcheck(size):
    input = torch.randn(2, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.local_response_norm(x, size, 0.7, 0.75, 1.5), [input])


@needs_extension
def test_local_response_norm_second_derivative_is_an_error():
    input = torch.randn(1, 4, 3, 3, requires_grad=True)
    output = ops.local_response_norm(input, 3)
    (first,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="cnnfast::local_response_norm"):
        torch.autograd.grad(first.sum(), input)


def test_local_response_norm_as_the_module():
    module, input = nn.LocalResponseNorm(5, 0.3, 0.6, 1.2), torch.randn(2, 12, 6, 6)
    own = ops.local_response_norm(input, module.size, module.alpha, module.beta, module.k)
    torch.testing.assert_close(own, module(input))


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_local_response_norm_under_autocast_gives_float32(dtype):
    input = torch.randn(2, 9, 4, 4).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        output, truth = ops.local_response_norm(input, 5), F.local_response_norm(input, 5)
    assert output.dtype == truth.dtype == torch.float32
    torch.testing.assert_close(output, truth)
