"""Gradients that come from one pass over strips of pixels, against float64: 1x1 kernels, first layers."""

import pytest
import torch
import torch.nn.functional as F

from cnnfast import ops

from .support import LAYOUTS, assert_near, in_layout, needs_extension, on_threads, poison

pytestmark = needs_extension

# in, out, height, width, batch: parts of uneven lengths, channels that fill no vector, one wide panel more
SIZES = {
    "whole_vectors": (64, 96, 32, 33, 2),
    "odd": (35, 67, 47, 45, 1),
    "few": (3, 5, 41, 53, 1),
    "many": (200, 136, 23, 29, 4),
}
ACTIVATIONS = ["none", "relu", "sigmoid", "tanh", "leaky_relu(0.1)", "hardtanh(-1, 2)"]
PLAIN = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}


def _tensors(name):
    inputs, outputs, height, width, batch = SIZES[name]
    torch.manual_seed(3)
    x = torch.randn(batch, inputs, height, width)
    return x, torch.randn(outputs, inputs, 1, 1) / inputs**0.5, torch.randn(outputs)


def _activate(y, activation):
    name, _, rest = activation.partition("(")
    numbers = [float(n) for n in rest.rstrip(")").split(",")] if rest else []
    functions = {
        "none": lambda y: y,
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "leaky_relu": F.leaky_relu,
        "hardtanh": F.hardtanh,
    }
    return functions[name](y, *numbers)


def _gradients(leaves, activation, cotangent):
    output = ops.conv2d(*leaves, None, None, (1, 1), (0, 0), (1, 1), 1, activation)
    poison(*(t.shape for t in leaves))
    return torch.autograd.grad(output, [t for t in leaves if t.requires_grad], cotangent)


def _true_gradients(leaves, activation, cotangent):
    doubles = [t.detach().double().requires_grad_(t.requires_grad) for t in leaves]
    output = _activate(F.conv2d(*doubles), activation)
    return torch.autograd.grad(output, [t for t in doubles if t.requires_grad], cotangent.double())


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_pointwise_gradients(name, activation):
    leaves = [t.requires_grad_() for t in _tensors(name)]
    cotangent = torch.randn(F.conv2d(*leaves).shape)
    found = _gradients(leaves, activation, cotangent)
    for own, true in zip(found, _true_gradients(leaves, activation, cotangent), strict=True):
        assert_near(own, true, 2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pointwise_gradients_of_layouts(layout):
    x, weight, bias = _tensors("whole_vectors")
    leaves = [in_layout(x, layout).detach().requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    cotangent = torch.randn(F.conv2d(*leaves).shape)
    for laid in LAYOUTS:
        found = _gradients(leaves, "relu", in_layout(cotangent, laid))
        for own, true in zip(found, _true_gradients(leaves, "relu", cotangent), strict=True):
            assert_near(own, true, 2e-5)
        assert found[1].stride() == weight.stride()


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)], ids=str)
def test_pointwise_gradients_that_are_wanted(wanted):
    leaves = [t.requires_grad_(bool(w)) for t, w in zip(_tensors("odd"), wanted, strict=True)]
    cotangent = torch.randn(F.conv2d(*leaves).shape)
    found = _gradients(leaves, "relu", cotangent)
    for own, true in zip(found, _true_gradients(leaves, "relu", cotangent), strict=True):
        assert_near(own, true, 2e-5)


# in, out, kernel, stride, padding, dilation, height, width, batch
FIRST_LAYERS = {
    "one_channel": (1, 96, 11, 4, 0, 1, 131, 140, 4),
    "colours": (3, 35, 7, 2, 3, 1, 67, 93, 2),
    "five": (1, 6, 5, 1, 2, 1, 28, 28, 5),
    "two pixels joined": (1, 8, 3, 1, 1, 1, 40, 42, 4),
    "three pixels joined": (2, 5, 5, 1, 2, 1, 31, 33, 4),
    "dilated, few outputs": (1, 8, 3, 1, 2, 2, 40, 42, 4),
    "joined over strides": (3, 7, 5, 2, 2, 1, 47, 63, 3),
    "dilated": (2, 17, 3, 1, 2, 2, 48, 47, 1),
    "oblong": (3, 20, (3, 5), (2, 1), (0, 2), 1, 61, 70, 1),
}


@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid"])
@pytest.mark.parametrize("name", FIRST_LAYERS)
def test_first_layer_gradients(name, activation):
    inputs, outputs, kernel, *geometry, height, width, batch = FIRST_LAYERS[name]
    stride, padding, dilation = (g if isinstance(g, tuple) else (g, g) for g in geometry)
    torch.manual_seed(4)
    x = torch.randn(batch, inputs, height, width)
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    weight = torch.randn(outputs, inputs, *kernel) / (inputs * kernel[0] * kernel[1]) ** 0.5
    leaves, doubles = [], []
    for t in (weight, torch.randn(outputs)):
        leaves.append(t.requires_grad_())
        doubles.append(t.detach().double().requires_grad_())
    true = _activate(F.conv2d(x.double(), *doubles, stride, padding, dilation), activation)
    cotangent = torch.randn(true.shape)
    wanted = torch.autograd.grad(true, doubles, cotangent.double())
    results = []
    for _ in on_threads(1, 2, 3):
        output = ops.conv2d(x, *leaves, None, None, stride, padding, dilation, 1, activation)
        poison(weight.shape, output.shape)
        results.append(torch.autograd.grad(output, leaves, cotangent))
    for own, exact in zip(results[0], wanted, strict=True):
        assert_near(own, exact, 2e-5)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_pointwise_gradients_do_not_depend_on_threads():
    leaves = [t.requires_grad_() for t in _tensors("many")]
    cotangent = torch.randn(F.conv2d(*leaves).shape)
    results = []
    for _ in on_threads(1, 2, 3, 5):
        results.append(_gradients(leaves, "relu", cotangent))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_pointwise_gradients_of_slices():
    """As a branch of a concatenation has them: pixels further apart than their channels reach."""
    x, weight, bias = _tensors("whole_vectors")
    wide = in_layout(torch.randn(x.shape[0], 96, *x.shape[2:]), "channels_last")
    cotangents = in_layout(torch.randn(x.shape[0], 160, *x.shape[2:]), "channels_last")
    x, cotangent = wide[:, 16:80], cotangents[:, 40:136]
    output = F.conv2d(x, weight, bias).relu().contiguous(memory_format=torch.channels_last)
    found = torch.ops.cnnfast.conv2d_backward(
        cotangent,
        x,
        weight,
        None,
        output,
        **PLAIN,
        activation="relu",
        output_mask=[False, True, True, False, False],
    )
    leaves = [x, weight.requires_grad_(), bias.requires_grad_()]
    true = _true_gradients(leaves, "relu", cotangent)
    assert_near(found[1], true[0], 2e-5)
    assert_near(found[2], true[1], 2e-5)


def test_pointwise_gradients_keep_nan_where_it_is():
    leaves = [t.requires_grad_() for t in _tensors("few")]
    cotangent = torch.randn(F.conv2d(*leaves).shape)
    cotangent[0, 2, 7, 9] = float("nan")
    input_grad, weight_grad, bias_grad = _gradients(leaves, "none", cotangent)
    place = torch.zeros(41, 53, dtype=torch.bool)
    place[7, 9] = True
    assert input_grad[0][:, place].isnan().all() and not input_grad[0][:, ~place].isnan().any()
    assert weight_grad[2].isnan().all() and not weight_grad[[0, 1, 3, 4]].isnan().any()
    assert bias_grad.isnan().tolist() == [False, False, True, False, False]


def test_pointwise_gradient_of_another_shape_is_an_error():
    x, weight, _ = _tensors("few")
    with pytest.raises(RuntimeError, match=r"conv2d_backward: grad_output has shape \[1, 5, 41, 52\]"):
        torch.ops.cnnfast.conv2d_backward(
            torch.randn(1, 5, 41, 52),
            x,
            weight,
            None,
            torch.randn(1, 5, 41, 52),
            **PLAIN,
            activation="relu",
            output_mask=[True, True, True, False, False],
        )
