"""Forwards that stay as they are between frozen children."""

import torch
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
