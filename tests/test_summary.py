"""The summary's rows: names, shapes, parameters, multiply-adds."""

import pytest
import torch
from torch import nn

import cnnfast
import cnnfast.nn as fast


def test_summary_of_lenet():
    result = cnnfast.summary(cnnfast.models.get_model("lenet"), (2, 1, 28, 28))
    rows = {row.name: row for row in result.rows}
    assert rows["conv1"].output_shape == (2, 6, 28, 28)
    assert rows["conv1"].parameters == 156
    assert rows["conv1"].multiply_adds == 28 * 28 * 6 * 25  # per image
    assert rows["fc1"].multiply_adds == 400 * 120
    assert result.parameters == 61_706
    assert result.multiply_adds == sum(row.multiply_adds for row in result.rows) == 416_520
    text = str(result)
    assert "2×6×28×28" in text and "61,706" in text and text.count("\n") == len(result.rows) + 2


def test_summary_goes_deeper():
    net = cnnfast.models.get_model("residual_net")
    rows = {row.name: row for row in cnnfast.summary(net, (1, 1, 28, 28), depth=2).rows}
    assert rows["rblock1.conv1"].multiply_adds == 12 * 12 * 16 * 16 * 9
    assert rows["rblock1"].multiply_adds == 2 * rows["rblock1.conv1"].multiply_adds
    assert not any("conv.conv" in name for name in rows)


def test_summary_of_plain_layers_equals_that_of_fused_ones():
    plain = nn.Sequential(nn.Conv2d(6, 8, 3, groups=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    fused = nn.Sequential(fast.ConvBNReLU2d(6, 8, 3, groups=2, padding=1), nn.Flatten())
    one, other = (cnnfast.summary(net, (1, 6, 5, 5)) for net in (plain, fused))
    assert one.multiply_adds == other.multiply_adds == 25 * 8 * 3 * 9
    assert one.parameters == other.parameters


def test_summary_of_a_layer_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.fc(x))

    rows = cnnfast.summary(Twice(), (3, 4)).rows
    assert [(row.parameters, row.multiply_adds) for row in rows] == [(20, 16), (0, 16)]


def test_summary_of_one_layer():
    (row,) = cnnfast.summary(nn.Linear(4, 5), (1, 4)).rows
    assert (row.name, row.output_shape, row.multiply_adds) == ("Linear", (1, 5), 20)


def test_summary_leaves_the_network_as_it_was():
    net = nn.Sequential(fast.ConvBNReLU2d(1, 2, 3), nn.Dropout()).train()
    net[1].eval()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    cnnfast.summary(net, (1, 1, 8, 8))
    assert net[0].training and not net[1].training
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    with pytest.raises(RuntimeError):
        cnnfast.summary(net, (1, 2, 8, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_summary_computes_nothing():
    """An input that would need 40 GB."""
    net = nn.Sequential(nn.Conv2d(1, 1000, 3, padding=1))
    assert cnnfast.summary(net, (1, 1, 3200, 3200)).rows[0].output_shape == (1, 1000, 3200, 3200)


def test_summary_needs_a_batch():
    net = cnnfast.models.get_model("lenet")
    with pytest.raises(ValueError, match=r"write \(1, 784\)"):
        cnnfast.summary(net, (784,))
    with pytest.raises(ValueError, match="at least one image"):
        cnnfast.summary(net, (0, 1, 28, 28))
    with pytest.raises(ValueError, match="depth"):
        cnnfast.summary(net, (1, 1, 28, 28), depth=0)


def test_summary_prints_with_rich():
    rich = pytest.importorskip("rich.console")
    console = rich.Console(record=True, width=120)
    console.print(cnnfast.summary(cnnfast.models.get_model("lenet"), (1, 1, 28, 28)))
    assert "416,520" in console.export_text()
