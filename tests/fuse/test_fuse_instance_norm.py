"""Instance norms, and their gradients, of which PyTorch gets some wrong in channels_last memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast

from .support import Net, check, operators

IMAGES = torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(3))


def _network(norm, activation):
    """Convolutions around the norm, so that what comes and what comes back lies in channels_last memory."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), norm, activation, nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1)
    )


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("tracked", [False, True], ids=["own", "tracked"])
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2)], ids=str)
def test_fuse_instance_norm(images, tracked, affine, activation):
    norm = nn.InstanceNorm2d(8, affine=affine, track_running_stats=tracked)
    fused = check(_network(norm, activation), IMAGES[:images])
    assert operators(fused)["1"] == "instance_norm2d"
    assert next(row for row in fused.report().rows if row.name == "2").status == "fused"


@pytest.mark.parametrize("images", [1, 2])
def test_fuse_instance_norm_between_what_stays(images):
    """The gradient of a mean lies in channels_last memory, whatever its input did."""
    model = Net(
        lambda net, x: (lambda y: (net.norm(y) * y).mean((2, 3)))(net.conv(x)),
        conv=nn.Conv2d(3, 8, 3, padding=1),
        norm=nn.InstanceNorm2d(8, affine=True),
    )
    check(model, IMAGES[:images])


@pytest.mark.parametrize("images", [1, 2])
def test_fuse_instance_norm_as_a_function(images):
    model = Net(
        lambda net, x: F.relu(F.instance_norm(net.conv(x), weight=net.scale, bias=net.shift)).mean((2, 3)),
        conv=nn.Conv2d(3, 8, 3, padding=1),
        scale=nn.Parameter(torch.rand(8) + 0.5),
        shift=nn.Parameter(torch.randn(8)),
    )
    fused = check(model, IMAGES[:images])
    assert "instance_norm2d" in operators(fused).values()


def test_fuse_instance_norm_without_batch_dimension():
    model = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.Tanh())
    fused = cnnfast.fuse(model)
    torch.testing.assert_close(fused(IMAGES[0]), model(IMAGES[0]), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="3D or 4D"):
        fused(IMAGES[0, 0])


def test_fuse_instance_norm_of_one_pixel_raises_as_pytorch_does():
    fused = cnnfast.fuse(nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU()))
    with pytest.raises(ValueError, match="spatial element"):
        fused(torch.randn(1, 3, 1, 1))


def test_fuse_instance_norm_scripted_and_under_autocast():
    model = _network(nn.InstanceNorm2d(8, affine=True), nn.ReLU())
    fused = cnnfast.fuse(model)
    for images in (IMAGES[:1], IMAGES):
        torch.testing.assert_close(torch.jit.script(fused)(images), model(images), rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            narrow = fused(images)
        assert narrow.dtype == torch.bfloat16
        assert F.l1_loss(narrow.float(), model(images)) < 2e-2
