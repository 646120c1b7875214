"""Gradients of conv2d: random cotangents against float64 autograd, gradcheck, and what has no gradient."""

import itertools

import pytest
import torch

from cnnfast import ops, reference

from .geometries import GEOMETRIES, TYPICAL, Geometry
from .support import (
    ACTIVATIONS,
    LAYOUTS,
    assert_near,
    doubles,
    gradients,
    in_layout,
    needs_extension,
    poison,
)

NAMES = ("input", "weight", "bias", "scale", "residual")


def tensors_of(geometry, *optional):
    """The five tensor arguments, all with gradients; of bias, scale and residual those that are named."""
    makers = {
        "bias": geometry.channel_values,
        "scale": geometry.channel_values,
        "residual": lambda: torch.randn(geometry.output_shape()),
    }
    tensors = [
        geometry.input(),
        geometry.weight(),
        *(m() if n in optional else None for n, m in makers.items()),
    ]
    return [None if t is None else t.requires_grad_() for t in tensors]


def check(geometry, tensors, activation="none", cotangent=None, relative=2e-5):
    output = ops.conv2d(*tensors, **geometry.options, activation=activation)
    exact = doubles(tensors)
    truth = reference.conv2d(*exact, **geometry.options, activation=activation)
    if activation == "relu":  # at a kink both sides are right, unless rounding chose another one
        assert torch.equal(output > 0, truth > 0)
    cotangent = torch.randn(truth.shape) if cotangent is None else cotangent
    poison(*(t.shape for t in tensors if t is not None))
    found = gradients(output, cotangent, tensors)
    expected = gradients(truth, cotangent, exact)
    for name, tensor, own, true in zip(NAMES, tensors, found, expected, strict=True):
        assert (own is None) == (true is None), name
        if own is not None:
            assert own.dtype == tensor.dtype and own.shape == tensor.shape, name
            assert_near(own, true, relative)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_conv2d_gradients(geometry):
    check(geometry, tensors_of(geometry, "bias"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("parts", list(itertools.product((False, True), repeat=3)), ids=str)
def test_conv2d_gradients_of_epilogue(parts, activation):
    optional = [name for name, present in zip(NAMES[2:], parts, strict=True) if present]
    for geometry in TYPICAL:
        check(geometry, tensors_of(geometry, *optional), activation)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv2d_gradients_of_layouts(layout):
    geometry = Geometry("", channels=(6, 9), padding=(1, 1))
    input, weight = (in_layout(t, layout).requires_grad_() for t in (geometry.input(), geometry.weight()))
    cotangent = in_layout(torch.randn(geometry.output_shape()), layout)
    check(geometry, [input, weight, None, None, None], "relu", cotangent)


def test_conv2d_gradients_of_expanded_cotangent():
    """What sum().backward() sends: one number behind every stride of zero."""
    geometry = Geometry("", channels=(6, 9), padding=(1, 1))
    check(geometry, tensors_of(geometry, "bias"), cotangent=torch.ones(1).expand(geometry.output_shape()))


@pytest.mark.parametrize("wanted", list(itertools.product((False, True), repeat=5))[1:], ids=str)
def test_conv2d_gradients_only_where_wanted(wanted):
    geometry = Geometry("", size=(5, 6), channels=(3, 4), padding=(1, 1))
    tensors = tensors_of(geometry, "bias", "scale", "residual")
    for tensor, flag in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(flag)
    check(geometry, tensors, "sigmoid")


@pytest.mark.parametrize("geometry", TYPICAL, ids=str)
def test_conv2d_gradients_of_an_empty_batch(geometry):
    input = geometry.input()[:0].requires_grad_()
    weight, bias = geometry.weight().requires_grad_(), geometry.channel_values().requires_grad_()
    ops.conv2d(input, weight, bias, **geometry.options, activation="relu").sum().backward()
    assert input.grad.shape == input.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert torch.equal(bias.grad, torch.zeros_like(bias))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conv2d_gradcheck(activation):
    geometry = Geometry("", size=(5, 4), channels=(4, 6), padding=(1, 0), stride=(2, 1), groups=2)
    tensors = tensors_of(geometry, "bias", "scale", "residual")
    tensors = [t.detach().double().requires_grad_() for t in tensors]

    def run(*args):
        return ops.conv2d(*args, **geometry.options, activation=activation)

    assert torch.autograd.gradcheck(run, tensors)


def test_conv2d_gradients_add_up_over_two_uses():
    geometry = Geometry("", size=(5, 5), channels=(4, 4), padding=(1, 1))
    weight = geometry.weight().requires_grad_()
    input = geometry.input()
    ops.conv2d(ops.conv2d(input, weight, padding=1), weight, padding=1).sum().backward()
    exact = weight.detach().double().requires_grad_()
    reference.conv2d(reference.conv2d(input.double(), exact, padding=1), exact, padding=1).sum().backward()
    assert_near(weight.grad, exact.grad)


def test_conv2d_gradient_through_an_evaluated_layer():
    """Weights frozen, input wanted: what visualising a network needs."""
    geometry = Geometry("", channels=(6, 9), padding=(1, 1))
    check(geometry, [geometry.input().requires_grad_(), geometry.weight(), None, None, None], "relu")


def test_conv2d_keeps_nan_in_gradients():
    geometry = Geometry("", size=(5, 5), channels=(2, 3), padding=(1, 1))
    tensors = tensors_of(geometry)
    cotangent = torch.randn(geometry.output_shape())
    cotangent[0, 1, 2, 2] = float("nan")
    check(geometry, tensors, "none", cotangent)


def test_conv2d_no_graph_without_need():
    geometry = Geometry("", size=(5, 5), channels=(2, 3))
    assert not ops.conv2d(geometry.input(), geometry.weight()).requires_grad
    with torch.no_grad():
        assert not ops.conv2d(geometry.input(), geometry.weight().requires_grad_()).requires_grad


@needs_extension
def test_conv2d_second_derivative_is_an_error():
    input = torch.randn(1, 2, 5, 5, requires_grad=True)
    output = ops.conv2d(input, torch.randn(3, 2, 3, 3), activation="sigmoid")
    (first,) = torch.autograd.grad(output.sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="cnnfast::conv2d"):
        torch.autograd.grad(first.sum(), input)


def test_conv2d_changed_tensor_before_backward_is_an_error():
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    output = ops.conv2d(torch.randn(1, 2, 5, 5, requires_grad=True), weight)
    with torch.no_grad():
        weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
