"""What the tests of fused networks share."""

import copy

import torch
from torch import nn

import cnnfast

from .networks import liven

IMAGE = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(7))


class Net(nn.Module):
    """Layers by name, and a function of them and the input as the forward."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)  # a module, or a parameter of its own

    def forward(self, x):
        return self.function(self, x)


def check(model, x=IMAGE, **options):
    """The fused network, behind a check of values in both modes, gradients and running averages."""
    model = liven(model)
    fused = cnnfast.fuse(copy.deepcopy(model), **options)
    for mode in (True, False):
        compare_steps(fused.train(mode), model.train(mode), x)
    for actual, wanted in zip(fused.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)
    return fused


def compare_steps(actual, wanted, x):
    """Outputs and gradients of two networks, input's gradient included."""
    results = []
    for net in (actual, wanted):
        x = x.detach().clone().requires_grad_()
        y = net(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in net.parameters() if p.grad is not None)])
        net.zero_grad()
    largest = max(gradient.abs().max() for gradient in results[1][1:])
    for i, (got, right) in enumerate(zip(*results, strict=True)):
        assert got.shape == right.shape
        assert (got - right).abs().max() <= 1e-4 * (right.abs().max() if i == 0 else largest)


def operators(fused):
    """What the rows run as, by layer, for those that begin a call."""
    rows = {row.name: row.runs_as for row in fused.report().rows if row.runs_as.startswith("cnnfast.ops.")}
    return {name: text.removeprefix("cnnfast.ops.").split(":")[0] for name, text in rows.items()}
