"""Plans made for values of one pixel serve larger images: sizes of 1 are not taken for granted."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast

from .plan_operations import SqueezeExcite
from .support import assert_near, needs_extension, truth

pytestmark = needs_extension
BY_CHANCE = {
    "product": lambda x, y: x * y.mean(3, keepdim=True),
    "sum": lambda x, y: x + y.sum(2, keepdim=True),
    "gate": lambda x, y: F.adaptive_avg_pool2d(x, (y.shape[2], 1)) * y,
}


@pytest.mark.parametrize("name", BY_CHANCE)
def test_plan_does_not_take_sizes_of_1_for_granted(name):
    """Shapes that are equal for images of one pixel are not for others."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.first(x)
            return self.last(BY_CHANCE[name](x, F.relu(x)))

    torch.manual_seed(0)
    model = Net().eval()
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 8, 8))
    for size in ((8, 8), (8, 24), (32, 16)):
        x = torch.randn(2, 3, *size)
        assert_near(frozen(x), truth(model, x))


def test_plan_made_for_one_pixel_serves_larger_images():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, 8, 1), SqueezeExcite(12, nn.Sigmoid()), nn.Conv2d(12, 4, 1)
    ).eval()
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 8, 8), strict=True)
    x = torch.randn(2, 3, 40, 24)
    assert_near(frozen(x), truth(model, x))
