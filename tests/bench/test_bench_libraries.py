"""Networks of torchvision and timm are valid models of a benchmark."""

import importlib.util

import pytest
import torch
from torch import nn

from cnnfast import _ext
from cnnfast.benchmarking import ModelSpec, compare
from cnnfast.benchmarking.fill import take_statistics

needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)


@needs_torchvision
def test_names_and_sizes():
    spec = ModelSpec("torchvision:inception_v3").resolved()
    assert spec.input_shape == (3, 299, 299) and spec.label == "torchvision:inception_v3"
    assert ModelSpec("torchvision:resnet18").resolved().input_shape == (3, 224, 224)
    assert ModelSpec("torchvision:resnet18", input_shape=(3, 64, 64)).resolved().input_shape == (3, 64, 64)
    with pytest.raises(ValueError, match="torchvision has no network named 'resnet17'"):
        ModelSpec("torchvision:resnet17").resolved()


def test_a_library_that_is_absent(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs timm, which is not installed: pip install 'cnnfast\[zoo\]'"):
        ModelSpec("timm:resnet18").resolved()


def test_statistics_are_those_of_the_batch():
    model, x = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.25)), torch.randn(4, 3, 9, 9)
    take_statistics(model, x)
    y = model[0](x)
    assert model[1].momentum == 0.25 and not model.training
    torch.testing.assert_close(model[1].running_mean, y.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, y.var((0, 2, 3)))


@needs_torchvision
@pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")
def test_a_network_is_compared():
    spec = ModelSpec("torchvision:shufflenet_v2_x0_5", input_shape=(3, 64, 64))
    result = compare(spec, [1], ["eager_channels_last", "cnnfast_frozen"], rounds=1, min_time=0.02)
    assert [row.status for row in result.rows] == ["ok", "ok"], [row.detail for row in result.rows]
    assert all(row.model == "torchvision:shufflenet_v2_x0_5" and row.median_s > 0 for row in result.rows)
