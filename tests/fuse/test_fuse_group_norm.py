"""Group norms with the activation behind them, as modules and as functions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast

from .support import Net, check, operators

IMAGES = torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(3))


def _network(norm, activation):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), norm, activation, nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1)
    )


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.SiLU(), nn.GELU("tanh")], ids=str)
def test_fuse_group_norm(images, affine, activation):
    fused = check(_network(nn.GroupNorm(4, 8, affine=affine), activation), IMAGES[:images])
    assert operators(fused)["1"] == "group_norm2d"
    assert next(row for row in fused.report().rows if row.name == "2").status == "fused"


@pytest.mark.parametrize("function", [F.group_norm, torch.group_norm], ids=["functional", "torch"])
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
def test_fuse_group_norm_as_a_function(function, affine):
    def forward(net, x):
        y = net.conv(x)
        y = function(y, 2, weight=net.scale, bias=net.shift, eps=1e-3) if affine else function(y, 2)
        return F.silu(y).mean((2, 3))

    parameters = {"scale": nn.Parameter(torch.rand(8) + 0.5), "shift": nn.Parameter(torch.randn(8))}
    model = Net(forward, conv=nn.Conv2d(3, 8, 3, padding=1), **(parameters if affine else {}))
    fused = check(model, IMAGES)
    assert "group_norm2d" in operators(fused).values()


class Groups(nn.GroupNorm):
    """As libraries write theirs: PyTorch's function in a forward of its own."""

    def forward(self, x):
        return F.leaky_relu(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps), 0.1)


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 7), (2, 8, 3, 4, 5)], ids=str)
def test_fuse_group_norm_of_what_is_no_image(shape):
    model = nn.Sequential(nn.GroupNorm(4, 8), nn.Tanh())
    fused, x = cnnfast.fuse(model), torch.randn(shape)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-6)


def test_fuse_group_norm_of_one_value_raises_as_pytorch_does():
    model = nn.Sequential(nn.GroupNorm(4, 4), nn.ReLU())
    for net in (model, cnnfast.fuse(model)):
        with pytest.raises(ValueError, match="more than 1 value"):
            net(torch.randn(1, 4, 1, 1))


def test_fuse_group_norm_follows_settings_changed_later():
    model = _network(nn.GroupNorm(4, 8), nn.ReLU())
    fused = cnnfast.fuse(model)
    before = fused(IMAGES)
    for net in (model, fused):  # tensors are shared, settings are those of either
        net.get_submodule("1").eps = 0.5
    with torch.no_grad():
        model[1].weight.mul_(2)
    assert not torch.allclose(before, fused(IMAGES))
    torch.testing.assert_close(fused(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_fuse_group_norm_scripted_and_under_autocast():
    model = _network(nn.GroupNorm(4, 8), nn.SiLU())
    fused = cnnfast.fuse(model)
    torch.testing.assert_close(torch.jit.script(fused)(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = fused(IMAGES)
    assert narrow.dtype == torch.bfloat16
    assert F.l1_loss(narrow.float(), model(IMAGES)) < 2e-2


def test_fused_group_norm_trains_as_the_network_does():
    """Far from zero, where PyTorch's own in channels_last memory errs most."""
    model = _network(nn.GroupNorm(2, 8), nn.SiLU())
    with torch.no_grad():
        model[0].bias.fill_(30.0)
    exact = copy.deepcopy(model).double()
    fused = cnnfast.fuse(model)
    fused(IMAGES).square().sum().backward()
    exact(IMAGES.double()).square().sum().backward()
    for own, true in zip(model.parameters(), exact.parameters(), strict=True):
        error = (own.grad - true.grad).abs().max() / true.grad.abs().max().clamp(min=1e-3)
        assert error < 1e-4


class InFloat(nn.GroupNorm):
    """As networks of diffusion models have it."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


@pytest.mark.parametrize("norm", [Groups(2, 8), InFloat(4, 8)], ids=lambda m: type(m).__name__)
def test_fuse_norms_of_classes_of_their_own(norm):
    """Their forwards are stepped into, and what they call is fused."""
    fused = check(_network(norm, nn.SiLU()), IMAGES)
    assert "group_norm2d" in operators(fused).values()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_fuse_networks_of_timm_with_group_norms():
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet18d", norm_layer="groupnorm", num_classes=7).eval()
    images = torch.randn(2, 3, 64, 64)
    fused = cnnfast.fuse(copy.deepcopy(model))
    assert list(operators(fused).values()).count("group_norm2d") >= 20
    torch.testing.assert_close(fused(images), model(images), rtol=1e-3, atol=1e-4)
