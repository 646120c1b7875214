"""bn_act_conv2d against BatchNorm2d, activation and Conv2d one after another in float64."""

import copy
import itertools

import pytest
import torch
from torch import nn

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
MODES = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
SMALL = Geometry("", channels=(6, 9), padding=(1, 1))


def tensors_of(geometry, *optional):
    channels = geometry.channels[0]
    makers = {
        "bias": geometry.channel_values,
        "bn_weight": lambda: torch.rand(channels) + 0.5,
        "bn_bias": lambda: torch.randn(channels) * 0.5,
        "residual": lambda: torch.randn(geometry.output_shape()),
    }
    tensors = [
        geometry.input(),
        geometry.weight(),
        *(m() if n in optional else None for n, m in makers.items()),
    ]
    return [None if t is None else t.requires_grad_() for t in tensors]


def averages(channels):
    return torch.randn(channels) * 0.5, torch.rand(channels) + 0.3


def run(function, geometry, tensors, running, training, activation, **options):
    return function(
        *tensors[:5],
        *running,
        tensors[5],
        training,
        **geometry.options,
        pre_activation=activation,
        **options,
    )


def check(geometry, tensors, training, activation="relu", cotangent=None, **options):
    running = averages(geometry.channels[0])
    exact, exact_running = doubles(tensors), doubles(running)
    poison(geometry.output_shape(), geometry.input().shape)
    output = run(ops.bn_act_conv2d, geometry, tensors, running, training, activation, **options)
    truth = run(reference.bn_act_conv2d, geometry, exact, exact_running, training, activation, **options)
    assert output.dtype == torch.float32
    assert_near(output, truth, 2e-5)
    for own, true in zip(running, exact_running, strict=True):
        assert_near(own, true)
    cotangent = torch.randn(truth.shape) if cotangent is None else cotangent
    poison(geometry.output_shape(), geometry.input().shape)
    found, expected = gradients(output, cotangent, tensors), gradients(truth, cotangent, exact)
    for name, tensor, own, true in zip(NAMES, tensors, found, expected, strict=True):
        assert (own is None) == (true is None), name
        if own is not None:
            assert own.dtype == tensor.dtype, name
            assert_near(own, true, 5e-5)


@MODES
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_bn_act_conv2d(geometry, training):
    torch.manual_seed(3)  # no normalised value within rounding of ReLU's kink
    if training and geometry.name == "one_pixel":
        pytest.skip("of two values per channel the gradients are rounding alone")
    check(geometry, tensors_of(geometry, "bias", "bn_weight", "bn_bias"), training)


@MODES
@pytest.mark.parametrize("activation", ["none", "sigmoid"])
@pytest.mark.parametrize("parts", list(itertools.product((False, True), repeat=4)), ids=str)
def test_bn_act_conv2d_parts(parts, activation, training):
    optional = [name for name, present in zip(NAMES[2:], parts, strict=True) if present]
    for geometry in TYPICAL[1:3]:
        check(geometry, tensors_of(geometry, *optional), training, activation)


@MODES
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("padding", [0, 1])
def test_bn_act_conv2d_layout(padding, layout, training):
    geometry = Geometry("", channels=(6, 9), padding=(padding, padding))
    tensors = tensors_of(geometry, *NAMES)
    for place in (0, 1, 5):
        tensors[place] = in_layout(tensors[place], layout).requires_grad_()
    cotangent = in_layout(torch.randn(geometry.output_shape()), layout)
    check(geometry, tensors, training, "sigmoid", cotangent)


@MODES
@pytest.mark.parametrize("wanted", list(itertools.product((False, True), repeat=6))[1::3], ids=str)
def test_bn_act_conv2d_gradients_only_where_wanted(wanted, training):
    tensors = tensors_of(SMALL, *NAMES)
    for tensor, flag in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(flag)
    if any(wanted):
        check(SMALL, tensors, training, "sigmoid")


@MODES
def test_bn_act_conv2d_eps_momentum_and_expanded_cotangent(training):
    cotangent = torch.ones(1).expand(SMALL.output_shape())
    check(SMALL, tensors_of(SMALL, *NAMES), training, "sigmoid", cotangent, eps=0.3, momentum=0.6)


@MODES
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bn_act_conv2d_border_is_zero(activation, training):
    """Zeros behind the activation: a border of act(shift) would show, as sigmoid(0) is 1/2."""
    bias = torch.full((3,), 5.0)
    options = {"bn_bias": bias, "padding": (2, 1), "pre_activation": activation, "training": training}
    input, weight = torch.randn(2, 3, 4, 5), torch.randn(4, 3, 3, 3)
    running = {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    output = ops.bn_act_conv2d(input, weight, **options, **running)
    truth = reference.bn_act_conv2d(input, weight, **options, **running)
    torch.testing.assert_close(output, truth, rtol=1e-4, atol=1e-4)


def test_bn_act_conv2d_as_the_modules():
    bn, conv = nn.BatchNorm2d(5), nn.Conv2d(5, 7, 3, padding=1, stride=2)
    own, input = copy.deepcopy(bn), torch.randn(4, 5, 9, 8)
    truth = conv(torch.relu(bn(input)))
    output = ops.bn_act_conv2d(
        input,
        conv.weight,
        conv.bias,
        own.weight,
        own.bias,
        own.running_mean,
        own.running_var,
        training=True,
        stride=2,
        padding=1,
    )
    torch.testing.assert_close(output, truth, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.running_mean, bn.running_mean)
    torch.testing.assert_close(own.running_var, bn.running_var)


@MODES
def test_bn_act_conv2d_special_values(training):
    geometry = Geometry("", channels=(6, 6), kernel=(1, 1), groups=6)
    input, running = geometry.input(), averages(6)
    input[0, 2, 3, 3], input[1, 4, 0, 0] = float("nan"), float("inf")
    output = run(
        ops.bn_act_conv2d, geometry, [input, geometry.weight(), *[None] * 4], running, training, "relu"
    )
    bad = (~output.isfinite()).any(dim=3).any(dim=2).any(dim=0)
    assert bad.nonzero().flatten().tolist() == [2, 4]
    if not training:
        assert output[0, 2, 3, 3].isnan() and (~output.isfinite()).sum() == 2


@MODES
def test_bn_act_conv2d_batch_of_zero(training):
    tensors = tensors_of(SMALL, "bias", "bn_weight", "bn_bias")
    tensors[0] = torch.randn(0, 6, 9, 8, requires_grad=True)
    running = torch.zeros(6), torch.ones(6)
    output = run(ops.bn_act_conv2d, SMALL, tensors, running, training, "relu")
    assert output.shape == (0, 9, 9, 8)
    output.sum().backward()
    assert tensors[0].grad.shape == tensors[0].shape
    assert all(torch.equal(t.grad, torch.zeros_like(t)) for t in tensors[1:5])
    assert torch.equal(running[0], torch.zeros(6)) and torch.equal(running[1], torch.ones(6))


def test_bn_act_conv2d_error_leaves_the_averages():
    running = torch.zeros(5), torch.ones(5)
    with pytest.raises(ValueError, match="more than (one|1) value per channel"):
        ops.bn_act_conv2d(
            torch.randn(1, 5, 1, 1), torch.randn(2, 5, 1, 1), None, None, None, *running, training=True
        )
    assert torch.equal(running[0], torch.zeros(5)) and torch.equal(running[1], torch.ones(5))


@needs_extension
def test_bn_act_conv2d_bad_geometry_leaves_the_averages():
    running = torch.zeros(5), torch.ones(5)
    with pytest.raises(RuntimeError, match="larger than input"):
        ops.bn_act_conv2d(
            torch.randn(2, 5, 4, 4), torch.randn(2, 5, 5, 5), None, None, None, *running, training=True
        )
    assert torch.equal(running[0], torch.zeros(5)) and torch.equal(running[1], torch.ones(5))


@needs_extension
def test_bn_act_conv2d_statistics_come_in_pairs():
    with pytest.raises(RuntimeError, match="cnnfast::bn_act_conv2d: mean and var"):
        torch.ops.cnnfast.bn_act_conv2d(torch.randn(2, 5, 4, 4), torch.randn(2, 5, 1, 1), mean=torch.zeros(5))


@needs_extension
@MODES
def test_bn_act_conv2d_passes_opcheck_with_every_argument(training):
    tensors = tensors_of(SMALL, *NAMES)
    running = (None, None) if training else averages(6)
    arguments = (*tensors[:5], *running, tensors[5])
    torch.library.opcheck(torch.ops.cnnfast.bn_act_conv2d.default, arguments, {"padding": [1, 1]})


@needs_extension
@pytest.mark.parametrize("layout", LAYOUTS)
@MODES
def test_bn_act_conv2d_leaves_its_arguments_alone(training, layout):
    input = in_layout(torch.randn(2, 5, 8, 8), layout)
    before = input.clone()
    output = ops.bn_act_conv2d(
        input, torch.randn(4, 5, 1, 1), None, None, None, *averages(5), training=training
    )
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(input, before)


@MODES
@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_bn_act_conv2d_gradcheck(activation, training):
    geometry = Geometry("", size=(4, 5), channels=(2, 3), padding=(1, 1), stride=(2, 1))
    tensors = doubles(tensors_of(geometry, *NAMES))
    mean, var = (r.double() for r in averages(2))

    def function(*args):
        running = mean.clone(), var.clone()
        return run(ops.bn_act_conv2d, geometry, args, running, training, activation)

    assert torch.autograd.gradcheck(function, tensors)


@needs_extension
@MODES
def test_bn_act_conv2d_second_derivative_is_an_error(training):
    input = torch.randn(2, 2, 5, 5, requires_grad=True)
    output = ops.bn_act_conv2d(
        input, torch.randn(3, 2, 3, 3), None, None, None, *averages(2), training=training
    )
    (first,) = torch.autograd.grad(output.pow(2).sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="cnnfast::bn_act_conv2d"):
        torch.autograd.grad(first.sum(), input)


@needs_extension
def test_bn_act_conv2d_keeps_no_activated_input_for_the_backward():
    """What autograd saves: the arguments and the statistics."""
    saved = []
    input = torch.randn(2, 6, 9, 8, requires_grad=True)
    weight = SMALL.weight().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.bn_act_conv2d(input, weight, padding=1)
    large = [t for t in saved if t.numel() >= input.numel()]
    assert [t.data_ptr() for t in large] == [input.data_ptr()]


@MODES
def test_bn_act_conv2d_averages_in_float32_beside_bfloat16(training):
    running = averages(6)
    own = [r.clone() for r in running]
    tensors = tensors_of(SMALL, *NAMES)
    narrow = [t if "bn" in n else t.detach().bfloat16() for n, t in zip(NAMES, tensors, strict=True)]
    narrow = [t.detach().requires_grad_() for t in narrow]
    truth = run(reference.bn_act_conv2d, SMALL, tensors, running, training, "relu")
    output = run(ops.bn_act_conv2d, SMALL, narrow, own, training, "relu")
    assert output.dtype == torch.bfloat16 and own[0].dtype == torch.float32
    assert_near(output, truth, 5e-2)
    output.float().sum().backward()
    assert all(t.grad.dtype == t.dtype for t in narrow)


@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bn_act_conv2d_under_autocast(dtype, training):
    """Images of float32 are normalised before they are rounded: their mean may be large."""
    tensors = tensors_of(SMALL, *NAMES)
    with torch.no_grad():
        tensors[0].add_(30.0)
        tensors[0] = tensors[0].to(dtype)
        tensors[5] = tensors[5].bfloat16()  # comes out of an earlier layer
    running = torch.full((6,), 30.0), torch.ones(6)
    own, true = [r.clone() for r in running], [r.clone() for r in running]
    with torch.autocast("cpu", torch.bfloat16):
        output = run(ops.bn_act_conv2d, SMALL, tensors, own, training, "relu")
        truth = run(reference.bn_act_conv2d, SMALL, tensors, true, training, "relu")
    assert output.dtype == torch.bfloat16
    assert_near(output, truth, 5e-2 if dtype == torch.float32 else 0.1)
    for mine, other in zip(own, true, strict=True):
        assert_near(mine, other, 1e-3)
    output.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == t.dtype for t in tensors[1:5])


@MODES
def test_bn_act_conv2d_scripted_and_compiled(training):
    scripted = torch.jit.script(ops.bn_act_conv2d)
    compiled = torch.compile(ops.bn_act_conv2d, fullgraph=True, backend="aot_eager")
    tensors, running = tensors_of(SMALL, *NAMES), averages(6)
    results = []
    for function in (ops.bn_act_conv2d, scripted, compiled):
        own = [r.clone() for r in running]
        output = run(function, SMALL, tensors, own, training, "relu")
        results.append((output, *own, *torch.autograd.grad(output.square().sum(), tensors)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])
