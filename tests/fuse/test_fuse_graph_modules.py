"""Networks that were traced, scripted or given another method as their forward before they are fused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast

from .support import check, operators
from .tracing_support import IMAGE, Stack


def test_fuse_graph_module():
    """A network that was traced before: copies of it write its forward anew, and stay fused."""
    model = torch.fx.symbolic_trace(nn.Sequential(Stack(), Stack()))
    fused = cnnfast.fuse(model)
    assert fused.report()["0.conv"].status == "fused"
    torch.testing.assert_close(fused(IMAGE), model(IMAGE), rtol=0, atol=1e-5)
    copied = copy.deepcopy(fused)
    weights = (network.get_parameter("0.conv.weight") for network in (copied, fused))
    assert type(copied) is type(fused) and next(weights) is not next(weights)
    around = nn.Sequential(model, nn.Conv2d(3, 2, 1)).eval()
    inside = cnnfast.fuse(around)
    assert inside.report()["0.0.conv"].status == "fused"
    scripted = torch.jit.script(inside)
    torch.testing.assert_close(scripted(IMAGE), around(IMAGE), rtol=0, atol=1e-5)
    model, copied = model.eval(), copied.eval()
    torch.testing.assert_close(copied(IMAGE), model(IMAGE), rtol=0, atol=1e-5)


def test_fuse_feature_extractor():
    """torchvision's have a graph for each mode, and take the one or the other in train()."""
    feature_extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = feature_extraction.create_feature_extractor(nn.Sequential(Stack(), Stack()), {"0": "a", "1": "b"})
    fused = cnnfast.fuse(model)
    assert fused.report()["0.conv"].status == "fused"
    for mode in (True, False, True):
        wanted, got = copy.deepcopy(model).train(mode)(IMAGE), copy.deepcopy(fused).train(mode)(IMAGE)
        assert wanted.keys() == got.keys() == {"a", "b"}
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    dropping = nn.Sequential(Stack(), Drops(), Stack())
    model = feature_extraction.create_feature_extractor(dropping, {"2": "out"})
    fused = cnnfast.fuse(model).eval()
    assert "for training and for evaluation, which differ" in str(fused.report())
    assert not torch.equal(model(IMAGE)["out"], model(IMAGE)["out"])  # the original still drops
    wanted = fused.unfuse()(input=IMAGE)
    torch.testing.assert_close([fused(IMAGE), fused(input=IMAGE)], [wanted, wanted], rtol=0, atol=1e-5)


class Drops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


def test_fuse_counts_beside_scripted_parts():
    model = nn.Sequential(Stack(), torch.jit.script(Stack().eval()), Stack()).eval()
    fused = cnnfast.fuse(model, IMAGE, verify=True)
    assert fused.report()["0.conv"].macs == 2 * 3 * 3 * 9 * 64
    torch.testing.assert_close(fused(IMAGE), model(IMAGE), rtol=0, atol=1e-5)


class Switched(nn.Module):
    """A module that calls another of its methods as its forward from the beginning on."""

    def __init__(self, fast):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        if fast:
            self.forward = self.forward_fast

    def forward(self, x):
        return torch.sigmoid(self.conv(x))

    def forward_fast(self, x):
        return torch.relu(self.norm(self.conv(x)))


def test_a_method_of_its_own_as_forward():
    torch.manual_seed(0)
    model = nn.Sequential(Switched(True), Switched(False))
    fused = check(model)
    found = operators(fused)
    assert found == {"0.conv": "conv2d_bn_act", "1.conv": "conv2d"}
    other = copy.deepcopy(fused).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    model = fused.unfuse()
    assert torch.equal(model(IMAGE), copy.deepcopy(model)(IMAGE)) and model[0].forward.__self__ is model[0]
    torch.testing.assert_close(other(IMAGE), other.unfuse()(IMAGE), rtol=1e-4, atol=1e-5)
    frozen = cnnfast.freeze(fused.eval(), IMAGE, strict=True)
    torch.testing.assert_close(frozen(IMAGE), fused(IMAGE), rtol=1e-4, atol=1e-5)
    assert "forward was replaced on the instance" in cnnfast.fuse(Switched(True)).report().notes[0]
