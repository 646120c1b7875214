"""Forwards that stay as they are between frozen children."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast

IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))


class CachedBias(nn.Module):
    """Keeps a value of evaluation; its train() returns nothing, as timm's attention has it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bias = nn.Parameter(torch.randn(8))
        self.kept = {}

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.kept = {}

    def forward(self, x):
        if self.training:
            return self.conv(x) + self.bias.view(1, -1, 1, 1)
        if "bias" not in self.kept:
            self.kept["bias"] = self.bias.view(1, -1, 1, 1)
        return self.conv(x) + self.kept["bias"]


class Shifted(nn.Module):
    """A write that is right in a plan only if it is for images of every size."""

    def forward(self, x):
        y = x * 2
        y.add_(1)
        return torch.relu(y)


def test_a_train_method_that_returns_nothing():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), CachedBias(), nn.ReLU())
    model.eval()
    for network in (model, model[1]):
        frozen = cnnfast.freeze(network, IMAGE, verify=True)
        fused = cnnfast.fuse(network, IMAGE, verify=True)
        assert frozen.report().coverage.multiply_adds == 1
        with torch.no_grad():
            wanted = network(IMAGE)
            torch.testing.assert_close(frozen(IMAGE), wanted, rtol=0, atol=1e-4)
            torch.testing.assert_close(fused(IMAGE), wanted, rtol=0, atol=1e-4)


def test_sizes_of_larger_images_are_found_without_a_trace_in_the_model():
    """What a forward keeps while sizes are worked out without numbers is no tensor of anyone's."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), CachedBias(), Shifted())
    model.eval()
    frozen = cnnfast.freeze(model, IMAGE)
    assert model[1].kept == {}
    with torch.no_grad():
        torch.testing.assert_close(frozen(IMAGE), model(IMAGE), rtol=0, atol=1e-4)
    assert type(model[1].kept["bias"]) is torch.Tensor


class Encoder(nn.Module):
    """Called with words, as networks of transformers call their parts."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, pixels, mask=None, scale=1.0, every_state=False, *, in_dict=True):
        first = torch.relu(self.a(pixels))
        second = self.b(first)
        states = (first, second) if every_state else (second,)
        return {"states": states} if in_dict else states


class Decides(nn.Module):
    """A forward that decides by values, which no graph can tell."""

    def __init__(self, encoder, **words):
        super().__init__()
        self.encoder, self.out, self.words = encoder, nn.Conv2d(8, 4, 1), words

    def forward(self, x):
        if x.max() > 100:
            return x
        return self.out(self.encoder(pixels=x, **self.words)["states"][-1])


@pytest.mark.parametrize("words", [{}, {"every_state": True}, {"mask": None, "every_state": False}], ids=str)
def test_children_called_with_words(words):
    torch.manual_seed(0)
    model = Decides(Encoder(), **words).eval()
    frozen = cnnfast.freeze(model, IMAGE, verify=True)
    assert frozen.report().coverage.multiply_adds == 1
    x = torch.randn(1, 3, 9, 14)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), model(x), rtol=0, atol=1e-4)


def test_children_called_with_words_that_have_no_position():
    model = Decides(Encoder(), in_dict=True).eval()
    frozen = cnnfast.freeze(model, IMAGE, verify=True)
    assert frozen.report()["encoder.a"].status == "eager" and frozen.report()["out"].status == "fused"


class Doubling(nn.Module):
    """No layer of torch's in it, and no graph of it."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x * 2


def test_a_forward_without_layers_that_stays_is_reported():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Doubling(), nn.Conv2d(4, 4, 3)).eval()
    report = cnnfast.freeze(model, IMAGE, verify=True).report()
    assert report["1"].status == "eager" and "decides by the values" in report["1"].reason
    assert report.coverage.layers == 2 / 3


@torch.jit.script
def scripted_swish(x):
    return x * torch.sigmoid(x)


class Swish(torch.autograd.Function):
    """Keeps its argument and has a gradient of its own, to save memory: common in packages of networks."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x if ctx.needs_input_grad[0] else None)
        return scripted_swish(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * s * (1 + x * (1 - s))


class Straight(torch.autograd.Function):
    """Another gradient than that of its forward."""

    @staticmethod
    def forward(x):
        return F.hardtanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Applies(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "function", [Swish.apply, Straight.apply, scripted_swish], ids=["own", "straight", "scripted"]
)
def test_functions_with_their_own_gradient_and_scripted_ones(function):
    """One plan when frozen; what fuse returns keeps the gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Applies(function), nn.Conv2d(8, 4, 3)).eval()
    frozen = cnnfast.freeze(model, IMAGE, strict=True)
    fused = cnnfast.fuse(model, IMAGE)
    wanted = model(IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(frozen(IMAGE), wanted.detach(), rtol=0, atol=1e-5)
    right, got = (
        torch.autograd.grad(net(IMAGE).square().sum(), list(net.parameters())) for net in (model, fused)
    )
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
