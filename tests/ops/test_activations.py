"""Activations at the end of operators: values over the whole range of float, NaN and Inf, gradients."""

import pytest
import torch

import cnnfast
from cnnfast import reference
from cnnfast.reference.activation import activate

from .support import needs_extension

NAMES = (
    "relu6", "hardtanh(-2, 0.5)", "leaky_relu", "leaky_relu(0.2)", "hardsigmoid", "hardswish", "silu", "tanh",
    "gelu", "gelu_tanh", "elu", "elu(1.5)", "mish", "sigmoid",
)  # fmt: skip
EACH = pytest.mark.parametrize("name", NAMES)


def whole_range():
    """Floats of every magnitude and sign, densely where activations bend."""
    magnitudes = torch.logspace(-44, 38.5, 20000, dtype=torch.float64).float()
    near = torch.linspace(0, 110, 80000)
    values = torch.cat([magnitudes, near, torch.linspace(0, 1, 10000), torch.tensor([0.0, 3.4028235e38])])
    return torch.cat([values, -values])


def identity(x, name):
    """x through a convolution that does nothing but the activation."""
    channels = 32
    image = torch.nn.functional.pad(x, (0, -len(x) % channels)).view(1, -1, 1, channels).permute(0, 3, 1, 2)
    weight = torch.ones(channels, 1, 1, 1)
    y = cnnfast.ops.conv2d(image, weight, groups=channels, activation=name)
    return y.permute(0, 2, 3, 1).flatten()[: len(x)]


def ulp(x):
    """The distance of float32 neighbours there, at least that of the smallest normal number."""
    size = x.abs().double().clamp(min=2.0**-126)
    return 2.0 ** (torch.floor(torch.log2(size)) - 23)


def accurate(x, name):
    """In float64 without the cancellation that eager's GELU has for negative x even there."""
    x = x.double()
    if name == "gelu":
        return x * 0.5 * torch.special.erfc(-x * 0.5**0.5)
    if name == "gelu_tanh":
        return x * torch.sigmoid((2 / torch.pi) ** 0.5 * 2 * (x + 0.044715 * x**3))
    return activate(x, name)


@needs_extension
@EACH
def test_activation_values_over_the_range_of_float(name):
    x = whole_range()
    truth = accurate(x, name)
    usable = truth.isfinite() & (truth.abs() < 3.4e38)
    eager = activate(x, name).double()
    actual = identity(x, name).double()
    ours = ((actual - truth).abs() / ulp(truth))[usable]
    theirs = ((eager - truth).abs() / ulp(truth))[usable]
    # The tails are e^(-x^2 / 2), whose exponent is rounded: as many ulp as it is large.
    exponent = x[usable].double().clamp(-20, 0) ** 2 if name.startswith("gelu") else torch.zeros(1)
    limit = torch.maximum(8.0 + 2 * exponent, 2 * theirs)
    worst = (ours - limit).argmax()
    assert ours[worst] <= limit[worst], f"{ours[worst]:.1f} ulp at {x[usable][worst]}"


@needs_extension
@EACH
def test_activation_keeps_nan_and_infinities_as_eager_does(name):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1.0, -1.0] * 7)
    torch.testing.assert_close(identity(x, name).double(), activate(x.double(), name), equal_nan=True)


@EACH
@pytest.mark.parametrize("layer", ["3x3", "5x5", "1x1", "grey", "depthwise", "grouped", "linear", "residual"])
def test_activation_behind_every_kernel(name, layer):
    """Channels and widths that fill no vector; a slice of the channels may not be touched beyond its end."""
    channels, out = (1, 6) if layer == "grey" else (12, 12) if layer == "depthwise" else (12, 21)
    groups = {"depthwise": 12, "grouped": 3}.get(layer, 1)
    kernel = {"5x5": 5, "1x1": 1, "linear": 1}.get(layer, 3)
    x = torch.randn(2, channels, 13, 11)
    weight = torch.randn(out, channels // groups, kernel, kernel) * 0.4
    bias, residual = torch.randn(out), None
    if layer == "linear":
        rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
        actual = cnnfast.ops.linear(rows, weight[:, :, 0, 0], bias, name)
        truth = reference.linear(rows.double(), weight[:, :, 0, 0].double(), bias.double(), name)
    else:
        padding = [kernel // 2] * 2
        if layer == "residual":
            residual = torch.randn(2, out, 13, 11)
        with torch.no_grad():
            actual = cnnfast.ops.conv2d(
                x, weight, bias, None, residual, padding=padding, groups=groups, activation=name
            )
        tensors = [t if t is None else t.double() for t in (x, weight, bias, None, residual)]
        truth = reference.conv2d(*tensors, padding=padding, groups=groups, activation=name)
    torch.testing.assert_close(actual.double(), truth, rtol=1e-5, atol=2e-5)


def _batch_norm_act(x, mean, var, gain, name):
    return torch.ops.cnnfast.batch_norm_act(x, mean, var, gain, gain, None, activation=name)


def _operators(x, weight, bias, gain, name):
    ones = torch.ones_like(bias)
    yield lambda x, w, b, g: cnnfast.ops.conv2d(x, w, b, activation=name)
    yield lambda x, w, b, g: cnnfast.ops.linear(x.flatten(1), w.flatten(1), b, name)
    yield lambda x, w, b, g: cnnfast.ops.batch_norm2d(x, g, g, activation=name)[0]
    yield lambda x, w, b, g: _batch_norm_act(x, 0 * g, 1 + 0 * g, g, name)
    yield lambda x, w, b, g: cnnfast.ops.conv2d_batch_norm(x, w, b, ones, b, activation=name)[0]


@needs_extension
@EACH
@pytest.mark.parametrize("operator", range(5))
def test_activation_gradients(name, operator):
    tensors = [torch.randn(4, 3, 5, 5), torch.randn(6, 3, 5, 5), torch.randn(6), torch.rand(3) + 0.5]
    if operator == 4:
        tensors[1] = torch.randn(6, 3, 2, 2)
    run = list(_operators(*tensors, name))[operator]
    single = [t.clone().requires_grad_() for t in tensors]
    double = [t.double().requires_grad_() for t in tensors]
    y = run(*single)
    cotangent = torch.randn_like(y)
    kwargs = {"allow_unused": True}
    found = torch.autograd.grad(y, single, cotangent, **kwargs)
    run64 = list(_operators(*double, name))[operator]
    wanted = torch.autograd.grad(run64(*double), double, cotangent.double(), **kwargs)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@needs_extension
@pytest.mark.parametrize("name", ["hardswish", "silu", "gelu", "gelu_tanh", "mish"])
def test_activation_whose_gradient_needs_its_input_is_refused_as_a_prologue(name):
    x, w, one = torch.randn(1, 3, 4, 4), torch.randn(2, 3, 1, 1), torch.ones(3)
    with pytest.raises(RuntimeError, match="gradient"):
        torch.ops.cnnfast.bn_act_conv2d(x, w, None, one, one, None, None, None, pre_activation=name)


@needs_extension
@pytest.mark.parametrize(
    "name",
    ["", "swish", "relu(1)", "leaky_relu(", "leaky_relu()", "leaky_relu(1, 2)", "hardtanh(2, 1)", "elu(x)"],
)  # fmt: skip
def test_activation_with_a_wrong_name_is_an_error(name):
    with pytest.raises((RuntimeError, ValueError)):
        cnnfast.ops.conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), activation=name)


def test_activation_reference_scripts():
    scripted = torch.jit.script(activate)
    x = torch.randn(50)
    for name in NAMES:
        torch.testing.assert_close(scripted(x, name), activate(x, name))
