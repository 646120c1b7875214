"""Operators on bfloat16 tensors: operands widened, sums in float32, results rounded once.

A convolution in front of a batch norm rounds what it hands on; where instructions multiply bfloat16, others
that are inside an operator do, too.
"""

import os
import subprocess
import sys

import pytest
import torch

from cnnfast import _ext, ops

from .operators import OPERATORS
from .support import needs_extension

every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=str)
pytestmark = needs_extension

# Half the distance of neighbours, as a part of the value.
ROUNDING = 2.0**-8

PAIRS = "CNNFAST_BF16_PAIRS" in os.environ or _ext.active_isa() == "amx"
# Layers where Winograd's algorithm saves less than pairs do.
SOME_PAIRS = PAIRS or _ext.active_isa() == "avx512_bf16"


def rounds_inside(operator):
    """What an inner layer hands to the next one, and what branches add up, is rounded as well."""
    if operator.name in ("bn_act_conv2d", "dense_block"):
        return SOME_PAIRS
    return PAIRS or operator.name in ("conv2d_batch_norm", "inception")


def narrow_tensors(operator, batch=3, requires_grad=False):
    torch.manual_seed(0)
    return operator.tensors(batch, dtype=torch.bfloat16, requires_grad=requires_grad)


@every_operator
def test_operator_rounds_once(operator):
    tensors = narrow_tensors(operator)
    truth = operator.run_reference(*(t.double() for t in tensors))
    output = operator.run(*tensors)
    assert output.dtype == torch.bfloat16
    inner = 2 * ROUNDING if rounds_inside(operator) else 2e-5
    allowed = ROUNDING * truth.abs() + inner * truth.abs().max()
    assert ((output.double() - truth).abs() <= allowed).all()


@every_operator
def test_operator_gradients(operator):
    """Against float64 on the same values; what the forward keeps is rounded, and so is what comes out."""
    tensors = narrow_tensors(operator, requires_grad=True)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    output, truth = operator.run(*tensors), operator.run_reference(*exact)
    cotangent = torch.randn_like(output)
    found = torch.autograd.grad(output, tensors, cotangent)
    expected = torch.autograd.grad(truth, exact, cotangent.double())
    for own, other in zip(found, expected, strict=True):
        assert own.dtype == torch.bfloat16
        # the true gradient of a bias in front of a batch norm is zero
        scale = other.abs().max().clamp_min(cotangent.double().abs().max())
        assert (own.double() - other).abs().max() <= (8 if rounds_inside(operator) else 4) * ROUNDING * scale


@every_operator
def test_operator_takes_any_layout(operator):
    tensors = narrow_tensors(operator)
    expected = operator.run(*tensors)
    for place in operator.batched:
        t = tensors[place]
        if t.dim() != 4:
            continue
        wider = torch.randn(t.shape[0], t.shape[1] + 3, *t.shape[2:]).bfloat16()
        wider = wider.contiguous(memory_format=torch.channels_last)
        wider[:, 1:-2] = t
        rows = torch.randn(t.shape[0], t.shape[1], t.shape[2] + 2, t.shape[3]).bfloat16()
        rows[:, :, 1:-1] = t
        layouts = [
            t.contiguous(memory_format=torch.channels_last),
            wider[:, 1:-2],
            rows[:, :, 1:-1],
            t.transpose(2, 3).contiguous().transpose(2, 3),
        ]
        for other in layouts:
            given = [other if i == place else same for i, same in enumerate(tensors)]
            torch.testing.assert_close(operator.run(*given), expected, rtol=ROUNDING, atol=1e-5)


@every_operator
def test_operator_of_no_images(operator):
    tensors = narrow_tensors(operator, batch=0)
    try:
        expected = operator.run_reference(*tensors)
    except (RuntimeError, ValueError):
        with pytest.raises((RuntimeError, ValueError)):
            operator.run(*tensors)
        return
    output = operator.run(*tensors)
    assert output.shape == expected.shape and output.dtype == torch.bfloat16


@every_operator
def test_operator_names_mixed_types(operator):
    tensors = narrow_tensors(operator)
    if len(tensors) == 1 or operator.name == "batch_norm2d":
        pytest.skip("it has no argument of the images' type beside them")
    tensors[0] = tensors[0].float()
    with pytest.raises(RuntimeError, match=r"Float.*BFloat16"):
        operator.run(*tensors)


@every_operator
def test_float32_weights_of_bfloat16_images(operator):
    """As autocast gives them; products of pairs round them. Their gradients are float32, too."""
    tensors = narrow_tensors(operator)
    weights = [i for i, t in enumerate(tensors) if t.dim() == 4 and i not in operator.batched]
    if not weights:
        pytest.skip("it has no convolution")
    for place in weights:
        tensors[place] = torch.randn(tensors[place].shape)
    tensors = [t.requires_grad_() for t in tensors]
    exact = [t.detach().double() for t in tensors]
    if PAIRS:  # every convolution rounds them
        for place in weights:
            exact[place] = tensors[place].detach().bfloat16().double()
    exact = [t.requires_grad_() for t in exact]
    output, truth = operator.run(*tensors), operator.run_reference(*exact)
    assert output.dtype == torch.bfloat16
    rounds = SOME_PAIRS or rounds_inside(operator) or operator.name == "dense_block"
    inner = 2 * ROUNDING if rounds else 2e-5
    allowed = ROUNDING * truth.abs() + inner * truth.abs().max()
    assert ((output.double() - truth).abs() <= allowed).all()
    cotangent = torch.randn_like(output)
    found = torch.autograd.grad(output, tensors, cotangent)
    expected = torch.autograd.grad(truth, exact, cotangent.double())
    steps = 16 if SOME_PAIRS and operator.name == "dense_block" else 8  # its weights are rounded
    for own, other, tensor in zip(found, expected, tensors, strict=True):
        assert own.dtype == tensor.dtype
        scale = other.abs().max().clamp_min(cotangent.double().abs().max())
        assert (own.double() - other).abs().max() <= steps * ROUNDING * scale
    for place in weights:  # their sums were not rounded on the way
        assert (found[place] != found[place].bfloat16()).any()


@pytest.mark.parametrize("recorded", [False, True])
def test_weights_that_change_in_place_are_seen(recorded):
    input = torch.randn(2, 8, 12, 12).bfloat16()
    weight = torch.randn(16, 8, 3, 3).bfloat16().requires_grad_(recorded)
    linear_input, linear_weight = torch.randn(4, 32).bfloat16(), torch.randn(16, 32).bfloat16()
    first, first_row = ops.conv2d(input, weight), ops.linear(linear_input, linear_weight)
    with torch.no_grad():
        weight.mul_(2)
        linear_weight.mul_(2)
    assert torch.equal(ops.conv2d(input, weight), first * 2)
    assert torch.equal(ops.linear(linear_input, linear_weight), first_row * 2)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [((2, 32, 28, 28), 3, 1), ((2, 32, 14, 14), 5, 1), ((2, 16, 30, 30), 3, 2)]
)
def test_large_convolutions_by_tiles(size, kernel, stride):
    """Sizes at which convolution and gradients choose Winograd's algorithm."""
    torch.manual_seed(0)
    input = torch.randn(size).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = (torch.randn(64, size[1], kernel, kernel) / (size[1] * kernel**2) ** 0.5).bfloat16()
    weight.requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (input, weight)]
    places = (kernel // 2,) * 2
    output = ops.conv2d(input, weight, stride=(stride, stride), padding=places, activation="relu")
    truth = torch.nn.functional.conv2d(*exact, stride=stride, padding=places).relu()
    assert (output.double() - truth).abs().max() <= 2 * ROUNDING * truth.abs().max()
    cotangent = torch.randn_like(output)
    found = torch.autograd.grad(output, (input, weight), cotangent)
    expected = torch.autograd.grad(truth, exact, cotangent.double())
    for own, other in zip(found, expected, strict=True):
        assert (own.double() - other).abs().max() <= 2 * ROUNDING * other.abs().max()


# images, input channels, height, width, output channels, kernel, stride, padding, dilation, groups
GRADIENT_SHAPES = [
    (2, 64, 30, 30, 64, 3, 1, 1, 1, 1),
    (1, 16, 9, 7, 32, 3, 1, 1, 1, 1),
    (3, 40, 7, 7, 24, 3, 1, 1, 1, 1),
    (2, 33, 12, 10, 50, 5, 1, 2, 1, 1),
    (2, 64, 14, 15, 48, 3, 2, 1, 1, 1),
    (2, 64, 14, 15, 128, 1, 2, 0, 1, 1),
    (2, 96, 20, 20, 96, 1, 1, 0, 1, 1),
    (2, 40, 11, 9, 24, 1, 1, 1, 1, 1),
    (2, 40, 11, 10, 24, 1, 2, 1, 1, 1),
    (2, 64, 9, 9, 96, 1, 1, 0, 1, 2),
    (2, 16, 13, 11, 20, 3, 3, 2, 1, 1),
    (2, 16, 13, 11, 20, 3, 1, 2, 2, 1),
    (2, 64, 8, 8, 64, 3, 1, 1, 1, 4),
    (2, 8, 23, 23, 16, 7, 2, 3, 1, 1),
    (2, 16, 10, 10, 16, 3, 2, 0, 2, 1),
    (2, 20, 10, 12, 16, 2, 1, 0, 1, 1),
    (2, 20, 10, 12, 16, 4, 3, 3, 1, 1),
    (9, 272, 3, 3, 272, 3, 1, 1, 1, 1),
    (1, 16, 1, 1, 16, 1, 1, 0, 1, 1),
    (2, 16, 9, 9, 16, 3, 1, 3, 1, 1),
    (12, 16, 40, 40, 16, 1, 1, 0, 1, 1),
    (2, 1, 47, 51, 40, 11, 4, 0, 1, 1),
    (2, 3, 40, 38, 24, 7, 2, 3, 1, 1),
    (2, 1, 20, 21, 16, 3, 1, 1, 1, 1),
    (2, 5, 23, 20, 16, 4, 4, 1, 1, 1),
    (2, 7, 23, 20, 16, 3, 2, 1, 1, 1),
    (2, 2, 12, 12, 16, 1, 2, 0, 1, 1),
]


@pytest.mark.parametrize("weight_type", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", GRADIENT_SHAPES, ids=str)
def test_gradients_of_convolutions(shape, weight_type):
    """Against float64, each rounded once; the same with any number of threads."""
    images, channels, height, width, out, kernel, stride, padding, dilation, groups = shape
    torch.manual_seed(0)
    input = torch.randn(images, channels, height, width).bfloat16().requires_grad_()
    weight = torch.randn(out, channels // groups, kernel, kernel).bfloat16().to(weight_type).requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (input, weight)]
    truth = torch.nn.functional.conv2d(*exact, None, stride, padding, dilation, groups)
    cotangent = torch.randn_like(truth).bfloat16()
    expected = torch.autograd.grad(truth, exact, cotangent.double())
    arguments = ((stride,) * 2, (padding,) * 2, (dilation,) * 2, groups)
    gradients = (torch.ops.cnnfast.conv2d_input_grad, torch.ops.cnnfast.conv2d_weight_grad)
    for gradient, other in zip(gradients, expected, strict=True):
        with_threads = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with_threads.append(gradient(cotangent, input.detach(), weight.detach(), *arguments))
        torch.set_num_threads(2)
        assert all(torch.equal(own, with_threads[0]) for own in with_threads)
        assert with_threads[0].dtype == (weight_type if gradient is gradients[1] else torch.bfloat16)
        beyond = (with_threads[0].double() - other).abs() - ROUNDING * other.abs()
        assert beyond.max() <= 2e-5 * other.abs().max()


@pytest.mark.parametrize("weight_type", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "none"])
@pytest.mark.parametrize(
    "shape",
    [
        (25, 32, 30, 30, 40, 3, 1, 1, 1, 1),
        (17, 40, 66, 62, 48, 3, 2, 1, 1, 1),
        (16, 48, 40, 40, 72, 1, 1, 0, 1, 1),
    ],
    ids=str,
)
def test_gradients_of_groups_of_images(shape, activation, weight_type):
    """All gradients of a convolution at sizes at which pairs take some images at a time."""
    images, channels, height, width, out, kernel, stride, padding, dilation, groups = shape
    torch.manual_seed(0)
    values = [
        torch.randn(images, channels, height, width).bfloat16(),
        (torch.randn(out, channels, kernel, kernel) / (channels * kernel**2) ** 0.5).bfloat16(),
        torch.randn(out).bfloat16(),
    ]
    own = [
        v.clone().to(kind).requires_grad_()
        for v, kind in zip(values, [torch.bfloat16, weight_type, weight_type], strict=True)
    ]
    settings = {"stride": (stride,) * 2, "padding": (padding,) * 2}
    output = ops.conv2d(*own, **settings, activation=activation)
    cotangent = torch.randn_like(output)
    found = torch.autograd.grad(output, own, cotangent, retain_graph=True)
    # From the output as it was rounded: what is near zero must not count as another side of ReLU.
    y, g = output.detach().double(), cotangent.double()
    before = {"relu": g * (y > 0), "sigmoid": g * y * (1 - y), "none": g}[activation]
    exact = [v.double().requires_grad_() for v in values]
    truth = torch.nn.functional.conv2d(*exact, **settings)
    expected = torch.autograd.grad(truth, exact, before.bfloat16().double())
    for one, other, leaf in zip(found, expected, own, strict=True):
        assert one.dtype == leaf.dtype
        # Sigmoid's gradient is rounded in front of the products by pairs, and not by others.
        inner = 2 * ROUNDING if activation == "sigmoid" else 2e-5
        beyond = (one.double() - other).abs() - ROUNDING * other.abs()
        assert beyond.max() <= inner * other.abs().max()
    torch.set_num_threads(1)
    once_more = torch.autograd.grad(output, own, cotangent)
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(found, once_more, strict=True))


@pytest.mark.skipif(PAIRS or not SOME_PAIRS, reason="needs vectors that multiply pairs, no tiles")
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 2)])
def test_layers_that_winograd_does_not_serve_multiply_pairs(kernel, stride):
    """It shows in weights that bfloat16 does not hold: they are rounded first."""
    input, weight = torch.ones(4, 64, 33, 33).bfloat16(), torch.full((64, 64, kernel, kernel), 1 + 2.0**-9)
    weight[:, ::2] = -1
    assert (ops.conv2d(input, weight, stride=(stride, stride)) == 0).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_has_the_layout_of_the_input(memory_format):
    input = torch.randn(2, 8, 9, 7).bfloat16().contiguous(memory_format=memory_format).requires_grad_()
    output = ops.conv2d(input, torch.randn(16, 8, 3, 3).bfloat16(), padding=(1, 1))
    (gradient,) = torch.autograd.grad(output, input, torch.randn_like(output))
    assert gradient.stride() == input.stride()


@pytest.mark.parametrize("name", ["relu", "none"])
def test_nan_stays_where_it_is(name):
    input = torch.randn(1, 4, 9, 9).bfloat16()
    input[0, 1, 0, 0] = float("nan")
    weight = torch.randn(8, 4, 3, 3).bfloat16()
    output = ops.conv2d(input, weight, padding=(1, 1), activation=name)
    assert output[0, :, :2, :2].isnan().all() and not output[0, :, 2:, 2:].isnan().any()


def test_linear_under_autocast():
    """Its weights need not be rounded; images, results and the types of gradients are eager autocast's."""
    torch.manual_seed(0)
    input, weight, bias = (torch.randn(size, requires_grad=True) for size in ((6, 40), (24, 40), (24,)))
    cotangent = torch.randn(6, 24).bfloat16()
    results = []
    for run in (ops.linear, torch.nn.functional.linear):
        with torch.autocast("cpu", torch.bfloat16):
            output = run(input, weight, bias)
        results.append((output, *torch.autograd.grad(output, (input, weight, bias), cotangent)))
    for own, eager in zip(*results, strict=True):
        assert own.dtype == eager.dtype
        assert (own.float() - eager.float()).abs().max() <= 2 * ROUNDING * eager.float().abs().max()


@pytest.mark.skipif(PAIRS, reason="these are such products already")
def test_products_of_pairs():
    """The same tests with the work done as on CPUs that multiply bfloat16."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(
        command, env=os.environ | {"CNNFAST_BF16_PAIRS": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout
