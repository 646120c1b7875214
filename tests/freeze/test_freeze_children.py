"""Forwards that cannot be traced: they stay, and their children are frozen one by one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast
from cnnfast.freeze import EagerNet

from .parts_support import IMAGE, Decides, check, conv
from .support import assert_near, needs_extension

pytestmark = needs_extension


def test_module_whose_forward_cannot_be_traced_is_frozen_child_by_child():
    block = Decides(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 3)))
    frozen = check(nn.Sequential(conv(3, 3), nn.ReLU(), block, conv(3, 2)), plans=3)
    report = frozen.report()
    assert [row.name for row in report.left_out] == ["2"] and report.coverage.multiply_adds == 1.0
    assert "'2' (Decides) keeps its own forward: its forward decides by the values" in str(report)
    check(Decides(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 3))), kind=EagerNet, plans=1)
    frozen = check(Decides(conv(3, 3)), kind=EagerNet, plans=1)
    assert frozen.report()["inner"].status == "fused"


@pytest.mark.parametrize("first", ["eager", "planned"])
def test_forwards_that_stay_may_call_view(first):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.body = conv(3, 4), nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4))
            self.head = nn.Sequential(nn.Linear(4 * 120, 5), nn.ReLU())

        def forward(self, x):
            y = self.conv(x) if first == "eager" else self.body(self.conv(x))
            return x if y.sum() > 1e9 else self.head(y.view(y.size(0), -1))

    frozen = check(Views(), kind=EagerNet)
    assert frozen.report()["head.0"].status == "fused"


def test_networks_that_kept_values_of_training_freeze():
    class Keeps(Decides):
        def forward(self, x):
            self.kept = [x * 2]
            return super().forward(x)

    model = Keeps(nn.Sequential(conv(3, 4), nn.Softplus(), conv(4, 4)))
    model(IMAGE.clone().requires_grad_())
    assert model.kept[0].requires_grad
    frozen = cnnfast.freeze(model, IMAGE)
    with torch.no_grad():
        assert_near(frozen(IMAGE), model(IMAGE).double())


def test_children_whose_insides_are_read_stay_eager():
    class Peeks(Decides):
        def forward(self, x):
            return self.inner(x) * self.inner[0].weight.mean() if x.sum() < 1e9 else x

    model = nn.Sequential(conv(3, 3), nn.ReLU(), Peeks(nn.Sequential(conv(3, 8), nn.ReLU())))
    frozen = check(model, plans=1)
    assert "does not work with frozen children" in frozen.report()["2.inner.0"].reason
    assert 0 < frozen.report().coverage.multiply_adds < 1


def test_autocast_of_a_part_is_not_lost():
    """A graph does not write it down, so that the forward which switches it on stays."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(conv(4, 4), nn.ReLU())

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return F.conv2d(self.inner(x), self.inner[0].weight).float()

    model = nn.Sequential(conv(3, 4), nn.ReLU(), Half(), conv(4, 2)).eval()
    frozen = cnnfast.freeze(model, IMAGE)
    with torch.no_grad():
        assert_near(frozen(IMAGE), model(IMAGE).double(), 2e-3)
    assert "turns autocast on or off" in frozen.report()["2.inner.0"].reason


def test_forwards_that_stay_read_the_settings_of_frozen_children():
    class Window(nn.Module):
        def __init__(self):
            super().__init__()
            self.size, self.body = 4, conv(3, 3)

        def forward(self, x):
            return F.relu(self.body(x))

    class Crops(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Window()

        def forward(self, x):
            if x.abs().sum() > self.inner.size:
                x = x[..., : self.inner.size]
            return self.inner(x)

    frozen = check(Crops(), kind=EagerNet, plans=1)
    assert frozen.report()["inner.body"].status == "fused"


def test_forwards_that_jump_keep_their_frozen_children():
    """As detection does, where a rounding error moves a box: eager children that are nudged do no better."""

    class Rounds(Decides):
        def forward(self, x):
            return (super().forward(x) * 1e6).round() % 2

    torch.manual_seed(0)
    frozen = cnnfast.freeze(Rounds(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 3))).eval(), IMAGE)
    assert frozen.report().coverage.multiply_adds == 1.0
