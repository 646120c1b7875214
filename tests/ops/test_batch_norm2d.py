"""batch_norm2d against eager PyTorch in float64: training, evaluation, gradients, running averages."""

import copy
import itertools

import pytest
import torch
from torch import nn

from cnnfast import _ext, ops, reference

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

NAMES = ("input", "weight", "bias", "residual")
MODES = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


def tensors_of(shape, *optional):
    """Input, weight, bias, residual, all with gradients; the last three where they are named."""
    channels = shape[1]
    makers = (lambda: torch.rand(channels) + 0.5, lambda: torch.randn(channels), lambda: torch.randn(shape))
    made = [m() if n in optional else None for n, m in zip(NAMES[1:], makers, strict=True)]
    return [None if t is None else t.requires_grad_() for t in (torch.randn(shape) * 2 + 0.5, *made)]


def averages(channels):
    return torch.randn(channels), torch.rand(channels) + 0.3


def check(tensors, training, activation="none", cotangent=None, eps=1e-5, momentum=0.1):
    input, weight, bias, residual = tensors
    running = averages(input.size(1))
    exact, exact_running = doubles(tensors), doubles(running)
    poison(input.shape, input.shape)
    options = (training, momentum, eps, activation)
    output = ops.batch_norm2d(input, weight, bias, *running, residual, *options)
    truth = reference.batch_norm2d(*exact[:3], *exact_running, exact[3], *options)
    assert output.dtype == input.dtype
    assert_near(output, truth, 2e-5)
    for own, true in zip(running, exact_running, strict=True):
        assert_near(own, true)
    cotangent = torch.randn(truth.shape) if cotangent is None else cotangent
    if activation == "relu":  # stay clear of kinks that rounding could cross
        cotangent = cotangent * (truth.detach().abs() > 1e-4)
    poison(input.shape, input.shape)
    found, expected = gradients(output, cotangent, tensors), gradients(truth, cotangent, exact)
    for name, own, true in zip(NAMES, found, expected, strict=True):
        assert (own is None) == (true is None), name
        if own is not None:
            assert own.dtype == torch.float32, name
            assert_near(own, true, 3e-5)


@MODES
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("channels", [1, 3, 7, 16, 33])
@pytest.mark.parametrize("size", [(5, 6), (1, 3), (20, 17)], ids=str)
def test_batch_norm2d(size, channels, activation, training):
    check(tensors_of((3, channels, *size), *NAMES), training, activation)


@MODES
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("parts", list(itertools.product((False, True), repeat=3)), ids=str)
def test_batch_norm2d_parts(parts, activation, training):
    optional = [name for name, present in zip(NAMES[1:], parts, strict=True) if present]
    check(tensors_of((2, 9, 6, 5), *optional), training, activation)


@MODES
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (3, 1, 4, 4), (5, 9, 1, 1), (1, 17, 4, 1)], ids=str)
def test_batch_norm2d_layout(shape, layout, training):
    tensors = tensors_of(shape, *NAMES)
    for place in (0, 3):
        tensors[place] = in_layout(tensors[place], layout).requires_grad_()
    check(tensors, training, "relu", in_layout(torch.randn(shape), layout))


@MODES
def test_batch_norm2d_expanded_cotangent(training):
    """Behind an activation: normalisation by the batch would take a constant away altogether."""
    cotangent = torch.ones(1).expand(2, 5, 6, 7)
    check(tensors_of((2, 5, 6, 7), *NAMES), training, "sigmoid", cotangent)


@MODES
@pytest.mark.parametrize("wanted", list(itertools.product((False, True), repeat=4))[1:], ids=str)
def test_batch_norm2d_gradients_only_where_wanted(wanted, training):
    tensors = tensors_of((2, 5, 6, 7), *NAMES)
    for tensor, flag in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(flag)
    check(tensors, training, "sigmoid")


@MODES
def test_batch_norm2d_eps_and_momentum(training):
    check(tensors_of((2, 5, 6, 7), *NAMES), training, eps=0.3, momentum=0.7)


def test_batch_norm2d_without_averages_uses_the_batch():
    input = torch.randn(3, 5, 6, 7)
    expected = reference.batch_norm2d(input.double(), training=True)
    assert_near(ops.batch_norm2d(input), expected, 2e-5)


def test_batch_norm2d_as_the_module():
    bn = nn.BatchNorm2d(6, momentum=0.3)
    own, input = copy.deepcopy(bn), torch.randn(4, 6, 7, 5)
    truth = bn(input)
    parameters = own.weight, own.bias, own.running_mean, own.running_var
    output = ops.batch_norm2d(input, *parameters, training=True, momentum=0.3, eps=bn.eps)
    torch.testing.assert_close(output, truth)
    torch.testing.assert_close(own.running_mean, bn.running_mean)
    torch.testing.assert_close(own.running_var, bn.running_var)


def test_batch_norm2d_mean_far_from_zero():
    """A variance as E[x²] - E[x]² would be all rounding error here."""
    input = torch.randn(4, 3, 16, 16) * 0.1 + 200.0
    assert_near(ops.batch_norm2d(input), reference.batch_norm2d(input.double()), 1e-3)


def test_batch_norm2d_constant_channel():
    """Variance zero: the output is the shift, not NaN, and where the mean is exact no error is magnified."""
    output = ops.batch_norm2d(torch.ones(2, 1, 4, 4), bias=torch.full((1,), 0.25))
    torch.testing.assert_close(output, torch.full((2, 1, 4, 4), 0.25))
    if _ext.AVAILABLE:
        for images in (torch.full((4, 24, 20, 19), 0.6), torch.full((4, 24, 20, 19), 0.6).bfloat16()):
            assert not ops.batch_norm2d(images).any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@MODES
def test_batch_norm2d_special_values_stay_in_their_channel(training, activation):
    input = torch.randn(2, 20, 5, 6)
    input[0, 2, 3, 3] = float("nan")
    input[0, 7, 0, 0] = float("inf")
    running = averages(20)
    output = ops.batch_norm2d(input, None, None, *running, None, training, activation=activation)
    truth = reference.batch_norm2d(
        input, None, None, *(r.clone() for r in running), None, training, activation=activation
    )
    good = torch.ones(20, dtype=torch.bool)
    good[[2, 7]] = False
    assert output[:, good].isfinite().all()
    if training:
        assert output[:, 2].isnan().all() and output[:, 7].isnan().all()
    else:
        torch.testing.assert_close(output, truth, equal_nan=True)


def test_batch_norm2d_gradient_of_a_nan_goes_through_relu():
    """As PyTorch's ReLU: its gradient is zero only where the output is zero or less."""
    input = torch.randn(1, 3, 2, 2)
    input[0, 1, 0, 0] = float("nan")
    input.requires_grad_()
    mean, var = torch.zeros(3), torch.ones(3)
    ops.batch_norm2d(input, None, None, mean, var, activation="relu").sum().backward()
    assert input.grad[0, 1, 0, 0] > 0


@MODES
def test_batch_norm2d_batch_of_zero(training):
    input = torch.randn(0, 4, 5, 5, requires_grad=True)
    weight, bias = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    mean, var = torch.zeros(4), torch.ones(4)
    output = ops.batch_norm2d(input, weight, bias, mean, var, training=training)
    assert output.shape == input.shape
    output.sum().backward()
    assert input.grad.shape == input.shape
    assert torch.equal(weight.grad, torch.zeros(4)) and torch.equal(bias.grad, torch.zeros(4))
    assert torch.equal(mean, torch.zeros(4)) and torch.equal(var, torch.ones(4))


def test_batch_norm2d_needs_two_values_for_a_variance():
    mean, var = torch.zeros(5), torch.ones(5)
    with pytest.raises(ValueError, match="more than (one|1) value per channel"):
        ops.batch_norm2d(torch.randn(1, 5, 1, 1), running_mean=mean, running_var=var, training=True)
    assert torch.equal(mean, torch.zeros(5)) and torch.equal(var, torch.ones(5))


@needs_extension
def test_batch_norm2d_error_leaves_the_averages():
    mean, var = torch.zeros(5), torch.ones(5)
    with pytest.raises(RuntimeError, match="softplus"):
        ops.batch_norm2d(
            torch.randn(2, 5, 3, 3), running_mean=mean, running_var=var, training=True, activation="softplus"
        )
    assert torch.equal(mean, torch.zeros(5)) and torch.equal(var, torch.ones(5))


@needs_extension
@pytest.mark.parametrize("layout", LAYOUTS)
@MODES
def test_batch_norm2d_output_is_channels_last_memory_of_its_own(training, layout):
    input = in_layout(torch.randn(2, 5, 8, 8), layout)
    before = input.clone()
    output = ops.batch_norm2d(input, None, None, *averages(5), None, training)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert output.untyped_storage().data_ptr() != input.untyped_storage().data_ptr()
    assert torch.equal(input, before)


@MODES
@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_batch_norm2d_gradcheck(activation, training):
    tensors = doubles(tensors_of((2, 3, 3, 2), *NAMES))
    mean, var = torch.randn(3).double(), torch.rand(3).double() + 0.3

    def run(input, weight, bias, residual):
        running = (mean.clone(), var.clone())
        return ops.batch_norm2d(input, weight, bias, *running, residual, training, activation=activation)

    assert torch.autograd.gradcheck(run, tensors)


@needs_extension
@MODES
def test_batch_norm2d_second_derivative_is_an_error(training):
    input = torch.randn(2, 2, 5, 5, requires_grad=True)
    output = ops.batch_norm2d(input, None, None, *averages(2), None, training)
    (first,) = torch.autograd.grad(output.pow(3).sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="cnnfast::batch_norm2d"):
        torch.autograd.grad(first.sum(), input)


@MODES
def test_batch_norm2d_averages_in_float32_beside_bfloat16(training):
    bn = nn.BatchNorm2d(6)
    bn.running_mean.uniform_(-0.5, 0.5)
    input, residual = torch.randn(3, 6, 7, 5).bfloat16(), torch.randn(3, 6, 7, 5).bfloat16()
    own = copy.deepcopy(bn)
    truth = torch.relu(bn.train(training)(input.float()) + residual.float())
    parameters = own.weight, own.bias, own.running_mean, own.running_var
    output = ops.batch_norm2d(input, *parameters, residual, training, activation="relu")
    assert output.dtype == torch.bfloat16 and own.running_mean.dtype == torch.float32
    assert_near(output, truth, 3e-2)
    assert_near(own.running_mean, bn.running_mean, 1e-2)
    output.float().sum().backward()
    assert own.weight.grad.dtype == torch.float32


@MODES
def test_batch_norm2d_under_autocast_adds_as_eager(training):
    """A convolution's output is narrow, an earlier layer's may be wide: the sum has the wider type."""
    running = averages(5)
    for types in itertools.product((torch.float32, torch.bfloat16), repeat=2):
        input, residual = (torch.randn(2, 5, 4, 4).to(dtype) for dtype in types)
        with torch.autocast("cpu", torch.bfloat16):
            output = ops.batch_norm2d(input, None, None, *running, residual, training)
            truth = reference.batch_norm2d(input, None, None, *running, residual, training)
        assert output.dtype == truth.dtype
        assert_near(output, truth, 3e-2)


@MODES
def test_batch_norm2d_scripted_and_compiled(training):
    scripted = torch.jit.script(ops.batch_norm2d)
    compiled = torch.compile(ops.batch_norm2d, fullgraph=True, backend="aot_eager")
    input, weight, bias, residual = tensors_of((2, 5, 6, 7), *NAMES)
    running = averages(5)
    results = []
    for function in (ops.batch_norm2d, scripted, compiled):
        mean, var = (r.clone() for r in running)
        output = function(input, weight, bias, mean, var, residual, training, activation="relu")
        grads = torch.autograd.grad(output.square().sum(), [input, weight, bias, residual])
        results.append((output, mean, var, *grads))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_batch_norm2d_does_not_depend_on_the_number_of_threads():
    tensors = tensors_of((4, 33, 40, 41), *NAMES)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            output = ops.batch_norm2d(tensors[0], *tensors[1:3], residual=tensors[3], activation="relu")
            results.append((output, *torch.autograd.grad(output.square().sum(), tensors)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
