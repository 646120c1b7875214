"""Modules around batch norm and local response normalisation against torch.nn's."""

import itertools

import pytest
import torch
from torch import nn

import cnnfast.nn as fast

from .support import ACTIVATIONS, assert_same_training, close


class PlainNorm(nn.Module):
    """act(bn(input) + residual)."""

    def __init__(self, activation="relu", **options):
        super().__init__()
        self.bn, self.activation = nn.BatchNorm2d(6, **options), ACTIVATIONS[activation]()

    def forward(self, input, residual=None):
        output = self.bn(input)
        return self.activation(output if residual is None else output + residual)


class PlainBNConv(nn.Module):
    """conv(act(bn(input))) + residual."""

    def __init__(self, conv, activation="relu", **options):
        super().__init__()
        self.bn, self.activation, self.conv = nn.BatchNorm2d(6, **options), ACTIVATIONS[activation](), conv

    def forward(self, input, residual=None):
        output = self.conv(self.activation(self.bn(input)))
        return output if residual is None else output + residual


class PlainLinear(nn.Sequential):
    def __init__(self, activation="relu", bias=True, **options):
        super().__init__(nn.Linear(6, 9, bias), nn.BatchNorm1d(9, **options), ACTIVATIONS[activation]())


def with_values_of(twin, layer):
    twin.load_state_dict(dict(zip(twin.state_dict(), layer.state_dict().values(), strict=True)))
    return twin


IMAGES = (3, 6, 8, 7)
STATISTICS = [
    {"affine": affine, "track_running_stats": tracks, "momentum": momentum, "eps": 1e-3}
    for affine, tracks, momentum in itertools.product((False, True), (False, True), (0.1, 1.0, None))
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_batch_norm_act(activation):
    for residual in (None, torch.randn(IMAGES)):
        layer = fast.BatchNormAct2d(6, activation=activation)
        twin = with_values_of(PlainNorm(activation), layer)
        assert_same_training(layer, twin, torch.randn(IMAGES), residual)


@pytest.mark.parametrize("options", STATISTICS, ids=str)
def test_batch_norm_act_statistics(options):
    layer = fast.BatchNormAct2d(6, **options)
    twin = with_values_of(PlainNorm(**options), layer)
    if options["affine"]:
        assert_same_training(layer, twin, torch.randn(IMAGES), steps=3)
    else:
        _assert_same_statistics(layer, twin)


CONVOLUTIONS = {
    "plain": {},
    "padding": {"padding": 1},
    "1x1": {"kernel_size": 1},
    "pairs": {"padding": (2, 1), "stride": (1, 2), "dilation": (1, 2)},
    "same_even": {"kernel_size": (2, 4), "padding": "same"},
    "reflect": {"padding": (1, 2), "padding_mode": "reflect"},
    "circular": {"padding": (2, 1), "padding_mode": "circular"},
    "groups": {"groups": 3, "padding": 1},
    "no_bias": {"bias": False, "padding": 1},
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_bn_act_conv_options(options):
    options = {"kernel_size": 3, **options}
    layer = fast.BNActConv2d(6, 9, **options)
    twin = with_values_of(PlainBNConv(nn.Conv2d(6, 9, **options)), layer)
    assert_same_training(layer, twin, torch.randn(IMAGES))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bn_act_conv_activation_and_residual(activation):
    layer = fast.BNActConv2d(6, 9, 3, padding=1, activation=activation)
    twin = with_values_of(PlainBNConv(nn.Conv2d(6, 9, 3, padding=1), activation), layer)
    assert_same_training(layer, twin, torch.randn(IMAGES), torch.randn(3, 9, 8, 7))


@pytest.mark.parametrize("options", STATISTICS, ids=str)
def test_bn_act_conv_statistics(options):
    layer = fast.BNActConv2d(6, 9, 3, **options)
    twin = with_values_of(PlainBNConv(nn.Conv2d(6, 9, 3), **options), layer)
    assert_same_training(layer, twin, torch.randn(IMAGES), steps=3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_bn_act(activation, bias):
    layer = fast.LinearBNAct(6, 9, bias, activation=activation)
    assert_same_training(layer, with_values_of(PlainLinear(activation, bias), layer), torch.randn(7, 6))


@pytest.mark.parametrize("options", STATISTICS, ids=str)
def test_linear_bn_act_statistics(options):
    layer = fast.LinearBNAct(6, 9, **options)
    assert_same_training(layer, with_values_of(PlainLinear(**options), layer), torch.randn(7, 6), steps=3)


def test_linear_bn_act_takes_rows_alone():
    with pytest.raises(RuntimeError, match=r"\[2, 3, 6\], but must be \(N, in_features\)"):
        fast.LinearBNAct(6, 9)(torch.randn(2, 3, 6))


@pytest.mark.parametrize(
    "layer, input",
    [
        (lambda: fast.BatchNormAct2d(6), (1, 6, 1, 1)),
        (lambda: fast.BNActConv2d(6, 9, 1), (1, 6, 1, 1)),
        (lambda: fast.BNActConv2d(6, 9, 3), (2, 5, 8, 8)),
        (lambda: fast.LinearBNAct(6, 9), (1, 6)),
        (lambda: fast.DenseBlock(2, 6, 3), (2, 5, 8, 8)),
    ],
)
def test_norm_module_error_leaves_it_unchanged(layer, input):
    layer = layer()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises((RuntimeError, ValueError)):
        layer(torch.randn(input))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_norm_modules_around_existing_modules():
    bn, conv, input = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3), torch.randn(IMAGES)
    single = fast.BatchNormAct2d.from_modules(bn.eval(), "sigmoid")
    assert single.bn is bn and not single.training
    close(single(input), torch.sigmoid(bn(input)))
    front = fast.BNActConv2d.from_modules(bn, conv.eval(), "relu")
    assert front.bn is bn and front.conv is conv and not front.training
    close(front(input), conv(torch.relu(bn(input))))
    linear, bn = nn.Linear(6, 4).eval(), nn.BatchNorm1d(4).eval()
    layer = fast.LinearBNAct.from_modules(linear, bn, "none")
    assert layer.linear is linear and layer.bn is bn and not layer.training
    close(layer(input[:, :, 0, 0]), bn(linear(input[:, :, 0, 0])))


@pytest.mark.parametrize("size, options", [(5, {"k": 2.0}), (2, {"alpha": 0.3}), (1, {}), (9, {"beta": 0.5})])
def test_local_response_norm(size, options):
    layer, twin = fast.LocalResponseNorm(size, **options), nn.LocalResponseNorm(size, **options)
    assert isinstance(layer, nn.LocalResponseNorm) and repr(layer) == repr(twin)
    own = (3 * torch.randn(IMAGES)).requires_grad_()
    true = own.detach().double().requires_grad_()
    output, truth = layer(own), twin(true)
    close(output, truth)
    cotangent = torch.randn(IMAGES)
    output.backward(cotangent)
    truth.backward(cotangent.double())
    close(own.grad, true.grad)


def _assert_same_statistics(layer, twin):
    """For layers without parameters."""
    for _ in range(3):
        input = torch.randn(IMAGES)
        close(layer(input), twin(input))
    for own, true in zip(layer.buffers(), twin.buffers(), strict=True):
        close(own, true)
    close(layer.eval()(input), twin.eval()(input))
