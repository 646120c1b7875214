"""Blocks against plain PyTorch: values, gradients, running averages; the shapes that the notes print."""

import copy

import pytest
import torch
from torch import nn

import cnnfast.nn as fast
from cnnfast.benchmarking.plain.densenet import DenseBlock, transition
from cnnfast.benchmarking.plain.inception import Inception, InceptionA
from cnnfast.benchmarking.plain.residual import PreActResidual

from .support import assert_same_training, close


class PlainResidual(nn.Module):
    def __init__(self, in_channels, out_channels, use_1x1conv=False, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv3 = nn.Conv2d(in_channels, out_channels, 1, stride) if use_1x1conv else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.conv3(x))


def nin_layers(num_1x1):
    ones = [layer for _ in range(num_1x1) for layer in (nn.Conv2d(5, 5, 1), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(3, 5, (3, 2), 2, 1), nn.ReLU(), *ones)


def vgg_layers():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2)
    )


BLOCKS = {
    "inception": (
        lambda: fast.Inception(6, 5, (3, 7), (2, 4), 3),
        lambda: Inception(6, 5, (3, 7), (2, 4), 3),
        (2, 6, 9, 8),
    ),
    "inception_a": (lambda: fast.InceptionA(5), lambda: InceptionA(5), (2, 5, 7, 6)),
    "residual": (lambda: fast.Residual(6, 6), lambda: PlainResidual(6, 6), (3, 6, 7, 8)),
    "residual_1x1": (
        lambda: fast.Residual(6, 9, use_1x1conv=True, stride=2),
        lambda: PlainResidual(6, 9, True, 2),
        (3, 6, 9, 8),
    ),
    "residual_1x1_same": (
        lambda: fast.Residual(6, 6, True),
        lambda: PlainResidual(6, 6, True),
        (3, 6, 7, 8),
    ),
    "preact": (lambda: fast.PreActResidual(6, 6), lambda: PreActResidual(6, 6), (3, 6, 7, 8)),
    "preact_1x1": (
        lambda: fast.PreActResidual(6, 9, use_1x1conv=True, stride=2),
        lambda: PreActResidual(6, 9, 2),
        (3, 6, 9, 8),
    ),
    "dense": (lambda: fast.DenseBlock(3, 5, 7), lambda: DenseBlock(3, 5, 7), (3, 5, 8, 7)),
    "dense_one_layer": (lambda: fast.DenseBlock(1, 5, 1), lambda: DenseBlock(1, 5, 1), (3, 5, 6, 6)),
    "transition": (lambda: fast.Transition(6, 3), lambda: transition(6, 3), (3, 6, 9, 8)),
    "nin": (lambda: fast.NiNBlock(3, 5, (3, 2), 2, 1), lambda: nin_layers(2), (2, 3, 9, 8)),
    "nin_single_1x1": (
        lambda: fast.NiNBlock(3, 5, (3, 2), 2, 1, num_1x1=1),
        lambda: nin_layers(1),
        (2, 3, 9, 8),
    ),
    "vgg": (lambda: fast.VGGBlock(2, 3, 5), vgg_layers, (2, 3, 9, 8)),
}


def with_values_of(twin, block):
    """The plain block with the other's values; both hold the same tensors in the same order."""
    twin.load_state_dict(dict(zip(twin.state_dict(), block.state_dict().values(), strict=True)))
    return twin


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("own, plain, shape", BLOCKS.values(), ids=BLOCKS)
def test_block_trains_like_its_plain_twin(own, plain, shape, layout):
    block = own()
    input = torch.randn(shape).contiguous(memory_format=layout)
    assert_same_training(block, with_values_of(plain(), block), input)


@pytest.mark.parametrize("own, plain, shape", BLOCKS.values(), ids=BLOCKS)
def test_block_of_an_empty_batch_and_of_a_slice(own, plain, shape):
    block = own().eval()
    twin = with_values_of(plain(), block).double().eval()
    wide = torch.randn(shape[0], 2 * shape[1], shape[2], shape[3] + 2)
    close(block(wide[:, ::2, :, 1:-1]), twin(wide[:, ::2, :, 1:-1].double()))
    empty = wide[:0, : shape[1]]
    assert block(empty).shape == twin(empty.double()).shape


@pytest.mark.parametrize("own, plain, shape", BLOCKS.values(), ids=BLOCKS)
def test_block_under_autocast_has_the_types_of_eager(own, plain, shape):
    block = own()
    twin = with_values_of(plain(), block)
    input = torch.randn(shape, dtype=torch.bfloat16)  # what comes from another layer
    for training in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            result, true = block.train(training)(input), twin.train(training)(input)
        assert result.dtype == true.dtype
        torch.testing.assert_close(result, true, rtol=8e-2, atol=8e-2)
        result.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in block.parameters())


def test_block_shapes_that_the_notes_print():
    images = torch.randn(4, 3, 6, 6)
    assert fast.Residual(3, 3)(images).shape == (4, 3, 6, 6)
    assert fast.Residual(3, 6, use_1x1conv=True, stride=2)(images).shape == (4, 6, 3, 3)
    assert fast.PreActResidual(3, 6, use_1x1conv=True, stride=2)(images).shape == (4, 6, 3, 3)
    dense = fast.DenseBlock(2, 3, 10)(torch.randn(4, 3, 8, 8))
    assert dense.shape == (4, 23, 8, 8)
    assert fast.Transition(23, 10)(dense).shape == (4, 10, 4, 4)
    assert fast.InceptionA(10)(torch.randn(2, 10, 12, 12)).shape == (2, 88, 12, 12)
    inception = fast.Inception(192, 64, (96, 128), (16, 32), 32)
    assert inception(torch.randn(1, 192, 12, 12)).shape == (1, 256, 12, 12)


def test_dense_block_gives_its_input_back_in_front():
    input = torch.randn(2, 5, 6, 7)
    assert torch.equal(fast.DenseBlock(3, 5, 4)(input)[:, :5], input)


def test_block_keys():
    assert list(fast.Inception(6, 5, (3, 7), (2, 4), 3).state_dict()) == list(
        Inception(6, 5, (3, 7), (2, 4), 3).state_dict()
    )
    assert list(fast.InceptionA(5).state_dict()) == list(InceptionA(5).state_dict())
    assert [key for key in fast.DenseBlock(2, 3, 4).state_dict() if key.endswith("weight")] == [
        "layers.0.bn.weight",
        "layers.0.conv.weight",
        "layers.1.bn.weight",
        "layers.1.conv.weight",
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers[1].bn.eval(),
        lambda layers: setattr(layers[0].bn, "eps", 0.1),
        lambda layers: setattr(layers[2].bn, "momentum", 0.5),
        lambda layers: setattr(layers[2].bn, "momentum", None),
        lambda layers: setattr(layers[1].bn, "track_running_stats", False),
        lambda layers: [setattr(layer.bn, "momentum", None) for layer in layers],
    ],
    ids=["frozen", "eps", "momentum", "one_cumulative", "untracked", "all_cumulative"],
)
def test_dense_block_with_batch_norms_of_their_own_settings(change):
    block = fast.DenseBlock(3, 5, 4)
    twin = with_values_of(DenseBlock(3, 5, 4), block).double()
    change(block.layers)
    change([nn.ModuleDict({"bn": layer[0]}) for layer in twin.net])
    for _ in range(3):
        input = torch.randn(2, 5, 6, 7)
        close(block(input), twin(input.double()))
    for own, true in zip(block.buffers(), twin.buffers(), strict=True):
        close(own, true, 2e-4)


def test_block_copies_do_not_share_parameters():
    block = fast.DenseBlock(2, 3, 4).eval()
    input = torch.randn(2, 3, 5, 5)
    before = block(input)
    copied = copy.deepcopy(block)
    with torch.no_grad():
        copied.layers[1].conv.weight.zero_()
    assert torch.equal(block(input), before) and not torch.equal(copied(input), before)
