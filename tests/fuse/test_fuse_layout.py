"""The memory layout in which fused calls hand values to forwards that stay."""

import pytest
import torch
from torch import nn

import cnnfast

IMAGE = torch.randn(2, 3, 10, 9, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())

    def forward(self, x):
        return torch.cat((self.left(x), self.right(x)), dim=1)


class Stays(nn.Module):
    """Decides by a value, so its children are fused one by one."""

    def __init__(self):
        super().__init__()
        self.branches = Branches()
        self.seen = []

    def forward(self, x):
        y = self.branches(x)
        self.seen.append(y.stride())
        return y * 2 if y.sum().item() > -1e9 else y


class Views(Stays):
    def forward(self, x):
        return super().forward(x).view(len(x), -1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inner_units_give_the_layout_of_separate_layers(layout):
    net, x = Stays(), IMAGE.contiguous(memory_format=layout)
    fused = cnnfast.fuse(net, x)
    assert "keeps its own forward" in " ".join(fused.report().notes)
    torch.testing.assert_close(fused(x), net(x))
    assert fused.seen[-1] == net.seen[-1]
    assert fused(x).is_contiguous(memory_format=layout)


def test_forward_that_stays_may_view_what_inner_units_give():
    net = Views()
    torch.testing.assert_close(cnnfast.fuse(net, IMAGE)(IMAGE), net(IMAGE))


def test_layouts_of_inputs_that_differ_are_not_taken_for_channels_last():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x, y):
            return torch.cat((self.conv(x), self.other(y)), dim=1)

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.sum = Sum()

        def forward(self, x):
            y = self.sum(x.contiguous(memory_format=torch.channels_last), x)
            return y.view(len(x), -1) if y.sum().item() > -1e9 else y

    net = Calls()
    wanted = net.sum(IMAGE, IMAGE).flatten(1)
    torch.testing.assert_close(cnnfast.fuse(net, IMAGE)(IMAGE), wanted)
