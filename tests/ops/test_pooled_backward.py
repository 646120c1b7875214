"""Gradients of a convolution and the pooling behind it in one pass: as one operator after the other."""

import pytest
import torch
import torch.nn.functional as F

from cnnfast import ops
from cnnfast.ops.inception import conv_stage, encode_branches, inception, pool_stage

from .support import assert_near, needs_extension, on_threads

pytestmark = needs_extension

# images, channels, size, convolution (channels, kernel, stride, padding) and pool (window, stride, padding)
LAYERS = {
    "windows apart": (6, 1, (32, 36), (8, 3, 1, 1), ("max", 2, 2, 0)),
    "windows apart, whole vectors": (4, 3, (28, 28), (16, 5, 1, 0), ("max", 2, 2, 0)),
    "windows that overlap": (5, 1, (61, 67), (24, 7, 2, 3), ("max", 3, 2, 1)),
    "rows below the last window": (6, 2, (29, 31), (10, 3, 1, 1), ("max", 2, 2, 0)),
    "means": (8, 1, (28, 28), (6, 5, 1, 2), ("avg", 2, 2, 0)),
    "means that overlap": (5, 4, (33, 30), (12, 3, 1, 1), ("avg", 3, 2, 1)),
    "few pixels": (1, 1, (9, 9), (8, 3, 1, 1), ("max", 2, 2, 0)),
}
ACTIVATIONS = {"none": lambda y: y, "relu": torch.relu, "sigmoid": torch.sigmoid}


class Layer:
    def __init__(self, name, activation, dtype=torch.float32):
        torch.manual_seed(0)
        images, channels, size, self.conv, self.pool = LAYERS[name]
        out, kernel, *_ = self.conv
        self.activation = activation
        self.input = (
            torch.randn(images, channels, *size).bfloat16().contiguous(memory_format=torch.channels_last)
        )
        self.weight = (torch.randn(out, channels, kernel, kernel) / kernel / channels**0.5).to(dtype)
        self.bias = torch.randn(out).to(dtype)
        self.leaves = [self.weight.requires_grad_(), self.bias.requires_grad_()]

    def at_once(self):
        _, kernel, stride, padding = self.conv
        stages = [conv_stage(kernel, stride, padding, activation=self.activation), pool_stage(*self.pool)]
        return inception(self.input, [self.weight], [self.bias], encode_branches([stages]))

    def convolution(self):
        _, kernel, stride, padding = self.conv
        return ops.conv2d(
            self.input, self.weight, self.bias, stride=stride, padding=padding, activation=self.activation
        )

    def one_by_one(self):
        kind, *window = self.pool
        return (ops.max_pool2d if kind == "max" else ops.avg_pool2d)(self.convolution(), *window)

    def exact_gradients(self, cotangent):
        _, kernel, stride, padding = self.conv
        leaves = [t.detach().double().requires_grad_() for t in self.leaves]
        y = F.conv2d(self.input.double(), *leaves, stride, padding)
        # ReLU and pooling decide by the operator's own values, which are rounded
        own = self.convolution().detach().double()
        y = y * (own > 0) if self.activation == "relu" else ACTIVATIONS[self.activation](y)
        y = y + (own - y).detach()
        kind, *window = self.pool
        y = (F.max_pool2d if kind == "max" else F.avg_pool2d)(y, *window)
        return torch.autograd.grad(y, leaves, cotangent.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_with_the_pooling(name, activation, dtype):
    layer = Layer(name, activation, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        output, apart = layer.at_once(), layer.one_by_one()
    assert torch.equal(output, apart)
    cotangent = torch.randn(output.shape).bfloat16()
    found = torch.autograd.grad(output, layer.leaves, cotangent)
    for own, other in zip(found, torch.autograd.grad(apart, layer.leaves, cotangent), strict=True):
        assert own.dtype == dtype
        assert_near(own.float(), other.double(), 1e-5 if dtype == torch.float32 else 8e-3)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        wanted = layer.exact_gradients(cotangent)
    for own, exact in zip(found, wanted, strict=True):
        assert_near(own.float(), exact, 2e-2)


@pytest.mark.parametrize("name", ["windows apart", "windows that overlap", "means"])
def test_gradients_with_the_pooling_do_not_depend_on_threads(name):
    layer = Layer(name, "relu")
    results = []
    for _ in on_threads(1, 2, 3):
        with torch.autocast("cpu", torch.bfloat16):
            output = layer.at_once()
        torch.manual_seed(1)
        results.append(torch.autograd.grad(output, layer.leaves, torch.randn(output.shape).bfloat16()))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=str)
def test_gradients_with_the_pooling_that_are_wanted(wanted):
    layer = Layer("windows apart", "relu")
    both = torch.autograd.grad(layer.at_once().sum(), layer.leaves)
    for leaf, wants in zip(layer.leaves, wanted, strict=True):
        leaf.requires_grad_(wants)
    own = torch.autograd.grad(layer.at_once().sum(), [leaf for leaf in layer.leaves if leaf.requires_grad])
    assert torch.equal(own[0], both[wanted.index(True)])


def test_nan_and_infinities_go_where_eager_sends_them():
    layer = Layer("windows apart", "relu")
    cotangent = torch.randn(layer.at_once().shape).bfloat16()
    cotangent[1, 3, 2, 2], cotangent[2, 5, 0, 1] = float("nan"), float("inf")
    found = torch.autograd.grad(layer.at_once(), layer.leaves, cotangent)
    apart = torch.autograd.grad(layer.one_by_one(), layer.leaves, cotangent)
    for own, other in zip(found, apart, strict=True):
        assert torch.equal(own.isnan(), other.isnan())


def test_an_input_with_a_gradient_gets_it():
    layer = Layer("windows apart", "relu")
    layer.input.requires_grad_()
    leaves = [layer.input, *layer.leaves]
    cotangent = torch.randn(layer.at_once().shape).bfloat16()
    found = torch.autograd.grad(layer.at_once(), leaves, cotangent)
    apart = torch.autograd.grad(layer.one_by_one(), leaves, cotangent)
    for own, other in zip(found, apart, strict=True):
        assert_near(own.float(), other.double(), 8e-3)
