"""What the tests of traced forwards share."""

import torch
import torch.nn.functional as F
from torch import nn

import cnnfast

IMAGE = torch.randn(2, 3, 8, 8)


class Stack(nn.Module):
    """A part that traces."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def check(model, inputs=(IMAGE,)):
    """The report, behind a check of keys, of values in evaluation and of the class that unfuse gives."""
    model = model.eval()
    fused = cnnfast.fuse(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    for _ in range(2):
        torch.testing.assert_close(fused(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    assert type(fused.unfuse()) is type(model)
    return fused.report()
