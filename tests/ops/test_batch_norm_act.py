"""batch_norm_act, the second half of conv2d_batch_norm, against eager PyTorch in float64."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from cnnfast import reference

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

pytestmark = needs_extension


def check(input, mean, var, weight=None, bias=None, residual=None, eps=1e-5, activation="none"):
    poison(input.shape)
    output = torch.ops.cnnfast.batch_norm_act(
        input, mean, var, weight, bias, residual, eps=eps, activation=activation
    )
    parts = [None if t is None else t.double() for t in (input, mean, var, weight, bias)]
    truth = F.batch_norm(*parts, False, 0.0, eps)
    truth = truth if residual is None else truth + residual.double()
    assert_near(output, reference.activation.activate(truth, activation))
    assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("parts", list(itertools.product((False, True), repeat=3)), ids=str)
def test_batch_norm_act(parts, activation):
    for channels in (1, 7, 16, 33):
        weight, bias = (torch.randn(channels) if present else None for present in parts[:2])
        residual = torch.randn(3, channels, 5, 6) if parts[2] else None
        mean, var = torch.randn(channels), torch.rand(channels) + 0.1
        check(torch.randn(3, channels, 5, 6), mean, var, weight, bias, residual, activation=activation)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_norm_act_layout(layout):
    input, residual = (in_layout(torch.randn(2, 5, 6, 7), layout) for _ in range(2))
    check(input, torch.randn(5), torch.rand(5), residual=residual, eps=0.1, activation="relu")


def test_batch_norm_act_passes_opcheck():
    tensors = [torch.randn(2, 5, 6, 7), torch.randn(5), torch.rand(5), torch.randn(5), torch.randn(5)]
    options = {"activation": "sigmoid"}
    torch.library.opcheck(torch.ops.cnnfast.batch_norm_act.default, tensors, options)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"input": torch.randn(5, 6, 7)}, ["input", "[5, 6, 7]"]),
        ({"mean": torch.randn(4)}, ["mean", "(5)", "[4]"]),
        ({"weight": torch.randn(6)}, ["weight", "(5)", "[6]"]),
        ({"residual": torch.randn(2, 5, 6, 8)}, ["residual", "[2, 5, 6, 8]", "[2, 5, 6, 7]"]),
        ({"activation": "tanhh"}, ["activation", "tanhh"]),
    ],
    ids=["rank", "mean", "weight", "residual", "activation"],
)
def test_batch_norm_act_bad_argument(change, words):
    arguments = {"input": torch.randn(2, 5, 6, 7), "mean": torch.randn(5), "var": torch.rand(5), **change}
    with pytest.raises(RuntimeError) as error:
        torch.ops.cnnfast.batch_norm_act(**arguments)
    message = str(error.value).splitlines()[0]
    assert message.startswith("cnnfast::batch_norm_act: ") and all(word in message for word in words), message


NAMES = ("input", "mean", "var", "weight", "bias", "residual")


def tensors_of(channels=5, size=(6, 7)):
    """All six tensors, with gradients."""
    shape = (2, channels, *size)
    values = [torch.randn(channels), torch.rand(channels) + 0.3, torch.rand(channels), torch.randn(channels)]
    return [t.requires_grad_() for t in (torch.randn(shape), *values, torch.randn(shape))]


def eager(input, mean, var, weight, bias, residual, activation):
    """By hand, as F.batch_norm has no gradient for the mean and the variance."""
    mean, var, weight, bias = (t.view(-1, 1, 1) for t in (mean, var, weight, bias))
    output = (input - mean) / (var + 1e-5).sqrt() * weight + bias + residual
    return reference.activation.activate(output, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("channels", [1, 7, 16, 33])
def test_batch_norm_act_gradients(channels, activation):
    tensors = tensors_of(channels)
    exact = doubles(tensors)
    output = torch.ops.cnnfast.batch_norm_act(*tensors, activation=activation)
    truth = eager(*exact, activation)
    cotangent = torch.randn(truth.shape) * (truth.detach().abs() > 1e-4)  # clear of ReLU's kink
    found, expected = gradients(output, cotangent, tensors), gradients(truth, cotangent, exact)
    for own, true in zip(found, expected, strict=True):
        assert_near(own, true, 2e-5)


@pytest.mark.parametrize("wanted", range(6), ids=NAMES)
def test_batch_norm_act_gradients_only_where_wanted(wanted):
    tensors = tensors_of()
    for place, tensor in enumerate(tensors):
        tensor.requires_grad_(place == wanted)
    exact = doubles(tensors)
    output = torch.ops.cnnfast.batch_norm_act(*tensors, activation="sigmoid")
    cotangent = torch.randn(output.shape)
    (own,) = [g for g in gradients(output, cotangent, tensors) if g is not None]
    (true,) = [g for g in gradients(eager(*exact, "sigmoid"), cotangent, exact) if g is not None]
    assert_near(own, true, 2e-5)


def test_batch_norm_act_gradcheck():
    tensors = doubles(tensors_of(3, (3, 2)))

    def run(*args):
        return torch.ops.cnnfast.batch_norm_act(*args, activation="sigmoid")

    assert torch.autograd.gradcheck(run, tensors)


def test_batch_norm_act_gradient_passes_opcheck():
    torch.library.opcheck(torch.ops.cnnfast.batch_norm_act.default, tensors_of(), {"activation": "relu"})
