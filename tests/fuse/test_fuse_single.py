"""Convolutions that a forward calls which stays as it is."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast

from .support import check

IMAGE = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(4))


class Kept(nn.Module):
    """A forward that decides by values, and views what its convolutions give."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, padding=1)
        self.heads = nn.ModuleList(
            [nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(6, 4, 1)]
        )
        self.same = nn.Conv2d(6, 6, (2, 3), padding="same", groups=2, dilation=2)

    def forward(self, x):
        x = F.silu(self.stem(input=x))
        if x.sum() > 1e9:
            return x
        x = self.same(x) + self.same(torch.cat([x, x], 1)[:, 3:9])  # called twice
        return torch.cat([head(x).view(x.size(0), 2, -1) for head in self.heads], 1)


def test_values_gradients_and_copies():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), Kept())
    fused = check(model, IMAGE)
    report = cnnfast.fuse(model.eval(), IMAGE, verify=True).report()
    assert report.coverage.layers == report.coverage.multiply_adds == 1 and report["2.heads.0"].error < 1e-4
    assert report["2.same"].runs_as == "cnnfast.ops.conv2d: 2.same"
    with torch.no_grad():
        wanted = fused.eval()(IMAGE)
        for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), cnnfast.fuse(fused)):
            assert torch.equal(other(IMAGE), wanted)
        frozen = cnnfast.freeze(fused, IMAGE)
        torch.testing.assert_close(frozen(IMAGE), wanted, rtol=1e-4, atol=1e-5)
    model = fused.unfuse()
    assert type(model[2].stem) is nn.Conv2d and isinstance(fused[2].stem, nn.Conv2d)


def test_weights_settings_and_hooks_are_followed():
    fused = cnnfast.fuse(Kept())
    seen = []
    fused.stem.register_forward_hook(lambda layer, args, y: seen.append(y.shape))
    with torch.no_grad():
        fused.stem.weight.mul_(3)
        fused.heads[1].bias = nn.Parameter(torch.ones(4))
        fused.stem.stride = (1, 2)
        torch.testing.assert_close(fused(IMAGE), fused.unfuse()(IMAGE), rtol=1e-4, atol=1e-5)
    assert seen == [(2, 6, 9, 4)] * 2
    fused.heads[1] = nn.Conv2d(6, 4, 1, bias=False)  # nothing of the layer is anywhere else
    assert fused(IMAGE).shape == fused.unfuse()(IMAGE).shape
    fused.stem.padding_mode = "circular"
    with pytest.raises(RuntimeError, match="padding_mode was 'zeros'"):
        fused(IMAGE)


def test_layers_that_stay():
    model = Kept()
    model.stem.register_forward_hook(lambda layer, args, y: y * 2)
    nn.utils.parametrizations.weight_norm(model.heads[1])
    fused = cnnfast.fuse(model, filter_fn=lambda name, layer: name != "same")
    reasons = {row.name: row.reason for row in fused.report().left_out}
    assert "it has hooks" in reasons["stem"] and "parametrized" in reasons["heads.1"]
    assert reasons["same"] == "left out by filter_fn" and len(reasons) == 3
    torch.testing.assert_close(fused(IMAGE), model(IMAGE), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripts_and_lower_precision():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x) if bool(x.sum() < 1e9) else x

    model = Scripted().eval()
    fused = cnnfast.fuse(model)
    torch.testing.assert_close(torch.jit.script(fused)(IMAGE), model(IMAGE), rtol=1e-4, atol=1e-5)
    assert fused(IMAGE[0]).shape == model(IMAGE[0]).shape
    with torch.autocast("cpu", torch.bfloat16):
        got, wanted = fused(IMAGE), model(IMAGE)
    assert got.dtype == wanted.dtype == torch.bfloat16 and got.stride() == wanted.stride()
    torch.testing.assert_close(got, wanted, rtol=0, atol=3e-2)


class KeptNorms(nn.Module):
    """A forward that decides by values, and norms its input and a part of it."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(3, 6), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return x + self.conv(F.silu(self.norm(x))) + self.norm(input=x[:, :, 1:2])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_group_norms_of_forwards_that_stay(layout):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), KeptNorms())
    image = IMAGE.contiguous(memory_format=layout)
    fused = check(model, image)
    row = fused.report()["1.norm"]
    assert row.status == "fused" and row.runs_as.startswith(
        "cnnfast.ops.group_norm2d where images are channels_last"
    )
    norm = fused[1].norm
    x = torch.randn(2, 6, 9, 8).contiguous(memory_format=layout).requires_grad_()
    y = norm(x)
    assert y.is_contiguous(memory_format=layout)
    assert ("NativeGroupNorm" in type(y.grad_fn).__name__) == (layout is torch.contiguous_format)
    other = pickle.loads(pickle.dumps(fused))
    assert torch.equal(other(image), fused(image))
    assert type(fused.unfuse()[1].norm) is nn.GroupNorm
    flat = x[:, :, 0]
    torch.testing.assert_close(norm(flat), F.group_norm(flat, 3, norm.weight, norm.bias))
