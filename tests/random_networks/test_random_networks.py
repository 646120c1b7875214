"""Networks made at random, frozen and fused, against eager PyTorch in float64.

Errors are of the largest value. What a network does with roundings, its conditioning, is known from eager
PyTorch in float32 (or under autocast) and from inputs rounded to bfloat16.
"""

import copy

import pytest
import torch

import cnnfast
from cnnfast import _ext

from .networks import network

pytestmark = pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")

SEEDS = range(40)


def _list(found):
    return list(found) if isinstance(found, tuple) else [found]


def _errors(actual, wanted):
    pairs = zip(_list(actual), _list(wanted), strict=True)
    return [((a.double() - w).abs().max() / w.abs().max().clamp(min=1e-3)).item() for a, w in pairs]


def _largest(*errors):
    return [max(values) for values in zip(*errors, strict=True)]


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_frozen_in_float32(seed):
    net, inputs = network(seed)
    exact = copy.deepcopy(net).double()
    frozen = cnnfast.freeze(net, inputs[0], allow_eager=True)
    for x in inputs:
        wanted = exact(x.double())
        for error, eager in zip(_errors(frozen(x), wanted), _errors(net(x), wanted), strict=True):
            assert error <= max(3e-5, 20 * eager)


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_frozen_in_bfloat16(seed):
    net, inputs = network(seed)
    exact = copy.deepcopy(net).double()
    frozen = cnnfast.freeze(net, inputs[0], dtype=torch.bfloat16, allow_eager=True)
    for x in inputs:
        wanted = exact(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            narrow = net(x)
        allowed = _largest(_errors(narrow, wanted), _errors(exact(x.bfloat16().double()), wanted))
        for error, other in zip(_errors(frozen(x), wanted), allowed, strict=True):
            assert error <= max(5e-2, 4 * other)


def _step(net, x, dtype):
    """Outputs, gradients of the input and of all parameters that take part, buffers."""
    x = x.to(dtype).requires_grad_()
    outputs = _list(net(x))
    leaves = [x, *net.parameters()]
    generator = torch.Generator().manual_seed(0)
    loss = sum((y * torch.randn(y.shape, generator=generator).to(dtype)).sum() for y in outputs)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return tuple(outputs), tuple(g for g in gradients if g is not None), tuple(net.buffers())


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("seed", SEEDS)
def test_fused(seed, training):
    net, inputs = network(seed)
    nets = [copy.deepcopy(net).double(), cnnfast.fuse(copy.deepcopy(net), inputs[0]), copy.deepcopy(net)]
    for x in inputs[: 1 if training else 2]:  # a single image may leave no statistics
        steps = [
            _step(each.train(training), x, dtype)
            for each, dtype in zip(nets, (torch.float64, torch.float32, torch.float32), strict=True)
        ]
        for wanted, fused, eager, least in zip(*steps, (2e-4, 2e-3, 2e-4), strict=True):
            if wanted:
                for error, other in zip(_errors(fused, wanted), _errors(eager, wanted), strict=True):
                    assert error <= max(least, 20 * other)
