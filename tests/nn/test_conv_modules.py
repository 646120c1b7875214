"""Fused convolution modules against torch.nn's: values, gradients, running averages, options."""

import copy
import itertools

import pytest
import torch
from torch import nn

import cnnfast.nn as fast

from .support import assert_same_training, plain

OPTIONS = {
    "plain": {},
    "padding": {"padding": 1},
    "pairs": {"padding": (2, 1), "stride": (1, 2), "dilation": (1, 2)},
    "same": {"padding": "same"},
    "same_even": {"kernel_size": (2, 4), "padding": "same"},
    "same_dilated": {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 2)},
    "valid": {"padding": "valid", "stride": 2},
    "reflect": {"padding": (1, 2), "padding_mode": "reflect"},
    "replicate": {"padding": 2, "padding_mode": "replicate", "stride": 2},
    "circular": {"padding": (2, 1), "padding_mode": "circular"},
    "circular_same": {"kernel_size": (2, 3), "padding": "same", "padding_mode": "circular"},
    "groups": {"groups": 3, "padding": 1},
    "no_bias": {"bias": False, "padding": 1},
}


def make(kind, options, **more):
    options = dict(options)
    return kind(6, 9, options.pop("kernel_size", 3), **options, **more)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    "kind", [fast.ConvReLU2d, fast.ConvBNReLU2d, fast.ConvBN2d], ids=lambda k: k.__name__
)
def test_conv_module_options(kind, options):
    layer = make(kind, options)
    assert_same_training(layer, plain(layer), torch.randn(3, 6, 10, 11))


@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid"])
@pytest.mark.parametrize("kind", [fast.ConvAct2d, fast.ConvBNAct2d], ids=lambda k: k.__name__)
def test_conv_module_activation_and_residual(kind, activation):
    layer = kind(6, 9, 3, padding=1, activation=activation)
    assert_same_training(layer, plain(layer), torch.randn(2, 6, 7, 8), torch.randn(2, 9, 7, 8))


@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.0, 1.0, None], ids=str)
@pytest.mark.parametrize("affine, tracks", list(itertools.product((False, True), repeat=2)), ids=str)
def test_conv_bn_module_statistics(affine, tracks, momentum):
    layer = fast.ConvBNReLU2d(6, 9, 3, momentum=momentum, affine=affine, track_running_stats=tracks, eps=1e-3)
    assert_same_training(layer, plain(layer), torch.randn(3, 6, 8, 8), steps=3)


def test_conv_bn_module_frozen_statistics():
    """layer.bn.eval() inside a training network."""
    layer = fast.ConvBNReLU2d(6, 9, 3)
    layer(torch.randn(4, 6, 8, 8))
    reference = plain(layer)
    layer.train().bn.eval()
    reference.train().bn.eval()
    before = layer.bn.running_mean.clone()
    input = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(layer(input), reference(input), rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.bn.running_mean, before) and layer.bn.num_batches_tracked == 1


def test_conv_bn_module_tracking_switched_off_later():
    layer = fast.ConvBNReLU2d(6, 9, 3)
    reference = plain(layer)
    for module in (layer, reference):
        module.bn.track_running_stats = False
        module.train()(torch.randn(2, 6, 8, 8))
        assert torch.equal(module.bn.running_mean, torch.zeros(9)) and module.bn.num_batches_tracked == 0


def test_conv_bn_module_error_leaves_it_unchanged():
    layer = fast.ConvBNReLU2d(6, 9, 3)
    before = copy.deepcopy(layer.state_dict())
    for bad in (torch.randn(2, 5, 8, 8), torch.randn(1, 6, 3, 3)):
        with pytest.raises((RuntimeError, ValueError)):
            layer(bad)
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_conv_module_keys_are_those_of_its_children():
    layer = fast.ConvBNReLU2d(3, 4, 3)
    own = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4)})
    assert list(layer.state_dict()) == list(own.state_dict())
    layer.load_state_dict(own.state_dict())
    own.load_state_dict(layer.state_dict())
    assert list(fast.ConvReLU2d(3, 4, 3, bias=False).state_dict()) == ["conv.weight"]


def test_conv_module_starts_like_torch():
    torch.manual_seed(3)
    layer = fast.ConvBNReLU2d(3, 4, 3)
    torch.manual_seed(3)
    assert torch.equal(layer.conv.weight, nn.Conv2d(3, 4, 3).weight)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_conv_module_around_existing_modules(padding_mode):
    conv, bn = nn.Conv2d(3, 4, 3, padding=1, padding_mode=padding_mode), nn.BatchNorm2d(4)
    layer = fast.ConvBNAct2d.from_modules(conv, bn, "sigmoid")
    assert layer.conv is conv and layer.bn is bn
    input = torch.randn(2, 3, 6, 6)
    expected = torch.sigmoid(copy.deepcopy(bn)(conv(input)))
    torch.testing.assert_close(layer(input), expected, rtol=1e-5, atol=1e-5)
    single = fast.ConvAct2d.from_modules(conv.eval(), "relu")
    assert single.conv is conv and not single.training
    torch.testing.assert_close(single(input), torch.relu(conv(input)), rtol=1e-5, atol=1e-5)


def test_conv_module_dtype_and_device():
    layer = fast.ConvBNReLU2d(3, 4, 3, dtype=torch.float64)
    assert layer(torch.randn(2, 3, 6, 6, dtype=torch.float64)).dtype == torch.float64
    assert fast.ConvReLU2d(3, 4, 3, device="meta")(torch.randn(2, 3, 6, 6, device="meta")).shape == (
        2,
        4,
        4,
        4,
    )


def test_conv_bn_module_under_autocast_has_the_types_of_eager():
    layer = fast.ConvBNReLU2d(6, 9, 3, padding=1)
    reference = plain(layer)
    input = torch.randn(2, 6, 8, 8)
    for training in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            own, true = layer.train(training)(input), reference.train(training)(input)
        assert own.dtype == true.dtype == torch.bfloat16
        torch.testing.assert_close(own, true, rtol=5e-2, atol=5e-2)
        assert layer.bn.running_mean.dtype == torch.float32
        own.sum().backward()
        assert layer.conv.weight.grad.dtype == torch.float32
