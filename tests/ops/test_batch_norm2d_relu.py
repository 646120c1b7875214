"""batch_norm2d_relu: batch norm, residual and ReLU with one bit per value for the gradient.

Autograd runs it in place of batch_norm2d on GPUs; here its formula by ATen, which serves every other device.
"""

import pytest
import torch

from cnnfast import reference

from .support import LAYOUTS, in_layout, needs_extension

pytestmark = needs_extension
forward = torch.ops.cnnfast.batch_norm2d_relu
backward = torch.ops.cnnfast.batch_norm2d_relu_backward
SHAPES = ((2, 3, 5, 7), (1, 8, 4, 4), (3, 1, 3, 1))


def arguments(shape=SHAPES[0], dtype=torch.float64, requires_grad=True):
    input, residual = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    weight, bias = torch.randn(shape[1], dtype=dtype), torch.randn(shape[1], dtype=dtype)
    return [t.requires_grad_(requires_grad) for t in (input, weight, bias, residual)]


def truth(input, weight=None, bias=None, residual=None):
    return reference.batch_norm2d(input, weight, bias, None, None, residual, True, activation="relu")


def bits(positive, like):
    """The bits as images."""
    n, c, h, w = like.shape
    flat = (positive.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten()
    assert not flat[like.numel() :].any()
    return flat[: like.numel()].bool().view(n, h, w, c).permute(0, 3, 1, 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm2d_relu_values_and_bits(shape):
    tensors = arguments(shape, requires_grad=False)
    output, mean, var, positive = forward(*tensors)
    torch.testing.assert_close(output, truth(*tensors))
    torch.testing.assert_close(mean, tensors[0].mean((0, 2, 3)))
    torch.testing.assert_close(var, tensors[0].var((0, 2, 3), correction=0))
    assert positive.dtype == torch.uint8 and positive.shape == ((output.numel() + 7) // 8,)
    assert torch.equal(bits(positive, output), output > 0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("optional", (True, False), ids=("all", "input_alone"))
def test_batch_norm2d_relu_gradients(shape, optional):
    tensors = arguments(shape)[: 4 if optional else 1]
    copies = [t.detach().clone().requires_grad_() for t in tensors]
    output, expected = forward(*tensors)[0], truth(*copies)
    cotangent = torch.randn(shape, dtype=torch.float64)
    found = torch.autograd.grad(output, tensors, cotangent)
    for actual, gradient in zip(found, torch.autograd.grad(expected, copies, cotangent), strict=True):
        torch.testing.assert_close(actual, gradient)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_norm2d_relu_of_every_layout(layout):
    input, weight, bias, residual = arguments(requires_grad=False)
    plain = forward(input, weight, bias, residual)
    laid = forward(in_layout(input, layout), weight, bias, in_layout(residual, layout))
    for actual, expected in zip(laid, plain, strict=True):
        torch.testing.assert_close(actual, expected)


def test_batch_norm2d_relu_bit_of_nan_lets_the_gradient_pass():
    input, weight, bias, residual = arguments(requires_grad=False)
    residual[0, 1, 2, 3] = torch.nan
    output, _, _, positive = forward(input, weight, bias, residual)
    assert output[0, 1, 2, 3].isnan() and bits(positive, output)[0, 1, 2, 3]


@pytest.mark.parametrize("requires_grad", (False, True), ids=("inference", "gradient"))
def test_batch_norm2d_relu_passes_opcheck(requires_grad):
    tensors = arguments(dtype=torch.float32, requires_grad=requires_grad)
    torch.library.opcheck(forward.default, tensors, {"eps": 1e-3})


@pytest.mark.parametrize("mask", ([True] * 4, [False, True, False, True]), ids=str)
def test_batch_norm2d_relu_backward_passes_opcheck(mask):
    input, weight, bias, residual = arguments(dtype=torch.float32, requires_grad=False)
    output, mean, var, positive = forward(input, weight, bias, residual)
    grad = torch.randn_like(output)
    torch.library.opcheck(backward.default, [grad, input, mean, var, weight, positive, 1e-5, mask])


def test_batch_norm2d_relu_backward_refuses_other_bits():
    input, weight, bias, residual = arguments(requires_grad=False)
    output, mean, var, positive = forward(input, weight, bias, residual)
    with pytest.raises(RuntimeError, match=r"positive must be 27 bytes .* not Byte of shape \[26\]"):
        backward(output, input, mean, var, weight, positive[:-1], 1e-5, [True] * 4)
    with pytest.raises(RuntimeError, match="grad_output has shape"):
        backward(output[:1], input, mean, var, weight, positive, 1e-5, [True] * 4)


def test_batch_norm2d_relu_refuses_one_value_per_channel():
    with pytest.raises(ValueError, match="more than one value per channel"):
        forward(torch.randn(1, 3, 1, 1))


def test_conv2d_batch_norm_relu_is_a_convolution_and_a_normalisation():
    input, _, _, residual = arguments(requires_grad=False)
    channels = input.shape[1]
    weight = torch.randn(channels, channels, 3, 3)
    gain, shift = torch.randn(2, channels).to(input.dtype)
    tensors = (input, weight.to(input.dtype), gain, shift, residual)
    operator = torch.ops.cnnfast.conv2d_batch_norm_relu
    output, conv, *rest = operator(*tensors, padding=[1, 1], eps=1e-3)
    torch.testing.assert_close(conv, torch.ops.cnnfast.conv2d(*tensors[:2], padding=[1, 1]))
    alone = forward(conv, gain, shift, residual, eps=1e-3)
    for actual, expected in zip((output, *rest), alone, strict=True):
        torch.testing.assert_close(actual, expected)
    torch.library.opcheck(operator.default, tensors, {"padding": [1, 1]})
    with pytest.raises(RuntimeError, match="residual has shape"):
        operator(*tensors[:4], residual[:, :, 1:], padding=[1, 1])
