"""conv2d_batch_norm (statistics of the batch) against float64, forward and backward."""

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

NAMES = ("input", "weight", "bias", "bn_weight", "bn_bias", "residual")
SEVERAL_VALUES = [g for g in GEOMETRIES if g.name not in ("one_pixel", "kernel_is_image")]


def tensors_of(geometry, *optional):
    makers = {
        "bias": geometry.channel_values,
        "bn_weight": geometry.channel_values,
        "bn_bias": geometry.channel_values,
        "residual": lambda: torch.randn(geometry.output_shape()),
    }
    tensors = [
        geometry.input(),
        geometry.weight(),
        *(m() if n in optional else None for n, m in makers.items()),
    ]
    return [None if t is None else t.requires_grad_() for t in tensors]


def check(geometry, tensors, activation="none", cotangent=None, eps=1e-5):
    poison(geometry.output_shape(), geometry.output_shape())
    options = {**geometry.options, "eps": eps, "activation": activation}
    output, mean, var = ops.conv2d_batch_norm(*tensors, **options)
    exact = doubles(tensors)
    truth, _, true_mean, true_var = reference.conv2d_batch_norm(*exact, **options)
    assert_near(output, truth, 2e-5)
    assert_near(mean, true_mean)
    assert_near(var, true_var)
    assert not mean.requires_grad and not var.requires_grad
    cotangent = torch.randn(truth.shape) if cotangent is None else cotangent
    if activation == "relu":  # stay clear of kinks that rounding could cross
        cotangent = cotangent * (truth.detach().abs() > 1e-4)
    found = gradients(output, cotangent, tensors)
    expected = gradients(truth, cotangent, exact)
    scale = max(t.abs().max().item() for t in expected if t is not None)
    for name, own, true in zip(NAMES, found, expected, strict=True):
        assert (own is None) == (true is None), name
        if name == "bias" and own is not None:  # its true gradient is zero: what is left is rounding
            assert own.abs().max() <= 1e-4 * scale
        elif own is not None:
            assert own.shape == true.shape, name
            assert_near(own, true, 5e-5)


@pytest.mark.parametrize("geometry", SEVERAL_VALUES, ids=str)
def test_conv2d_batch_norm(geometry):
    check(geometry, tensors_of(geometry, "bias", "bn_weight", "bn_bias"), "relu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("parts", list(itertools.product((False, True), repeat=4)), ids=str)
def test_conv2d_batch_norm_parts(parts, activation):
    optional = [name for name, present in zip(NAMES[2:], parts, strict=True) if present]
    for geometry in TYPICAL[1:3]:
        check(geometry, tensors_of(geometry, *optional), activation)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv2d_batch_norm_layout(layout):
    geometry = Geometry("", channels=(6, 9), padding=(1, 1))
    tensors = tensors_of(geometry, "bn_weight", "bn_bias", "residual")
    for place in (0, 1, 5):
        tensors[place] = in_layout(tensors[place], layout).requires_grad_()
    check(geometry, tensors, "relu", in_layout(torch.randn(geometry.output_shape()), layout))


@pytest.mark.parametrize("wanted", [(0,), (1,), (3,), (5,), (0, 4), (2, 3)], ids=str)
def test_conv2d_batch_norm_gradients_only_where_wanted(wanted):
    geometry = Geometry("", channels=(6, 9), padding=(1, 1))
    tensors = tensors_of(geometry, *NAMES[2:])
    for place, tensor in enumerate(tensors):
        tensor.requires_grad_(place in wanted)
    check(geometry, tensors, "sigmoid")


def test_conv2d_batch_norm_eps():
    geometry = Geometry("", channels=(3, 4))
    check(geometry, tensors_of(geometry, "bn_weight"), eps=0.3)


def test_conv2d_batch_norm_mean_far_from_zero():
    """A variance as E[x²] - E[x]² would be all rounding error here."""
    input = torch.randn(4, 3, 16, 16) * 0.1 + 200.0
    weight = torch.rand(5, 3, 3, 3) / 27
    output, _, var = ops.conv2d_batch_norm(input, weight)
    truth, _, _, true_var = reference.conv2d_batch_norm(input.double(), weight.double())
    assert_near(var, true_var, 1e-2)
    assert_near(output, truth, 1e-2)


def test_conv2d_batch_norm_constant_channel():
    """Variance zero: the output is the shift, not NaN."""
    output, mean, var = ops.conv2d_batch_norm(
        torch.ones(2, 1, 4, 4), torch.ones(1, 1, 1, 1), bn_bias=torch.full((1,), 0.25)
    )
    torch.testing.assert_close(output, torch.full((2, 1, 4, 4), 0.25))
    assert mean.item() == 1.0 and var.item() == 0.0


def test_conv2d_batch_norm_special_values_stay_in_their_channel():
    geometry = Geometry("", channels=(6, 6), kernel=(1, 1), groups=6)
    input = geometry.input()
    input[0, 2, 3, 3] = float("nan")
    output, mean, var = ops.conv2d_batch_norm(input, geometry.weight(), groups=6)
    bad = torch.arange(6) == 2
    assert torch.equal(output.isnan().all(dim=3).all(dim=2).all(dim=0), bad)
    assert torch.equal(output.isnan().any(dim=3).any(dim=2).any(dim=0), bad)
    assert torch.equal(mean.isnan(), bad) and torch.equal(var.isnan(), bad)


def test_conv2d_batch_norm_arguments_are_left_alone():
    geometry = Geometry("", channels=(6, 9), padding=(1, 1))
    tensors = [t.detach() for t in tensors_of(geometry, *NAMES[2:])]
    before = [t.clone() for t in tensors]
    ops.conv2d_batch_norm(*tensors, padding=1, activation="relu")
    assert all(map(torch.equal, tensors, before))


def test_conv2d_batch_norm_gradcheck():
    geometry = Geometry("", size=(4, 5), channels=(2, 3), padding=(1, 1), stride=(2, 1))
    tensors = doubles(tensors_of(geometry, *NAMES[2:]))

    def run(*args):
        return ops.conv2d_batch_norm(*args, **geometry.options, activation="sigmoid")[0]

    assert torch.autograd.gradcheck(run, tensors)


@needs_extension
def test_conv2d_batch_norm_second_derivative_is_an_error():
    input = torch.randn(2, 2, 5, 5, requires_grad=True)
    output, _, _ = ops.conv2d_batch_norm(input, torch.randn(3, 2, 3, 3))
    (first,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="cnnfast::conv2d_batch_norm"):
        torch.autograd.grad(first.sum(), input)


@needs_extension
def test_conv2d_batch_norm_saved_convolution_excludes_the_bias():
    geometry = Geometry("", channels=(6, 9), padding=(1, 1))
    input, weight, bias = geometry.input(), geometry.weight(), geometry.channel_values()
    _, saved, mean, _ = torch.ops.cnnfast.conv2d_batch_norm(input, weight, bias, padding=[1, 1])
    truth = torch.nn.functional.conv2d(input.double(), weight.double(), padding=1)
    assert_near(saved, truth)
    assert_near(mean, truth.mean((0, 2, 3)) + bias.double())
