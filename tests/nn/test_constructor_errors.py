"""Bad constructor arguments: the message shows the call as it should be."""

import pytest
from torch import nn

import cnnfast.nn as fast


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: fast.ConvAct2d(3, 8, 3, activation="rleu"), ['ConvAct2d(..., activation="relu")']),
        (lambda: fast.ConvBNAct2d(3, 8, 3, activation="Sigmoid"), ['ConvBNAct2d(..., activation="sigmoid")']),
        (lambda: fast.LinearAct(3, 8, activation="softplus"), ["none, relu, sigmoid", "'softplus'"]),
        (lambda: fast.ConvReLU2d(6, 8, 3, groups=3), ["write ConvReLU2d(6, 8, 3, groups=2)"]),
        (lambda: fast.ConvBN2d(6, 8, (3, 1), groups=0), ["write ConvBN2d(6, 8, (3, 1), groups=1)"]),
        (lambda: fast.ConvReLU2d(0, 8, 3), ["ConvReLU2d(0, 8, 3", "at least 1"]),
        (lambda: fast.ConvReLU2d(3, 8, 3, padding="same", stride=2), ["padding='same'", "strided"]),
        (lambda: fast.ConvReLU2d(3, 8, 3, padding_mode="mirror"), ["padding_mode", "mirror"]),
        (lambda: fast.MaxPool2d(2, return_indices=True), ["torch.nn.MaxPool2d(2, return_indices=True)"]),
        (
            lambda: fast.ConvBNAct2d.from_modules(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(9)),
            ["9 channels", "BatchNorm2d(8)"],
        ),
        (
            lambda: fast.BNActConv2d.from_modules(nn.BatchNorm2d(9), nn.Conv2d(3, 8, 3)),
            ["9 channels", "conv takes 3", "BatchNorm2d(3)"],
        ),
        (
            lambda: fast.LinearBNAct.from_modules(nn.Linear(3, 8), nn.BatchNorm1d(9)),
            ["9 channels", "linear gives 8", "BatchNorm1d(8)"],
        ),
        (lambda: fast.BatchNormAct2d(3, activation="rleu"), ['BatchNormAct2d(..., activation="relu")']),
        (lambda: fast.LinearBNAct(3, 8, activation="Relu"), ['LinearBNAct(..., activation="relu")']),
        (lambda: fast.BNActConv2d(6, 8, 3, groups=3), ["write BNActConv2d(6, 8, 3, groups=2)"]),
        (lambda: fast.Residual(3, 6), ["write Residual(3, 6, use_1x1conv=True, stride=1)"]),
        (lambda: fast.PreActResidual(3, 3, stride=2), ["PreActResidual(3, 3, use_1x1conv=True, stride=2)"]),
        (lambda: fast.Inception(3, 1, (0, 2), (1, 1), 1), ["c2_reduced must be at least 1"]),
        (lambda: fast.InceptionA(0), ["InceptionA(in_channels=0)"]),
        (lambda: fast.DenseBlock(0, 3, 4), ["num_layers must be at least 1"]),
        (lambda: fast.VGGBlock(0, 3, 4), ["num_convs must be at least 1"]),
        (lambda: fast.NiNBlock(3, 4, 3, num_1x1=-1), ["num_1x1 must be at least 0"]),
    ],
)
def test_constructor_error_shows_the_right_call(build, words):
    with pytest.raises(ValueError) as error:
        build()
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: fast.ConvAct2d.from_modules(nn.Linear(3, 4)),
        lambda: fast.ConvBNAct2d.from_modules(nn.Conv2d(3, 4, 3), nn.ReLU()),
        lambda: fast.LinearAct.from_modules(nn.Conv2d(3, 4, 3)),
        lambda: fast.BatchNormAct2d.from_modules(nn.ReLU()),
        lambda: fast.BNActConv2d.from_modules(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(3)),
        lambda: fast.LinearBNAct.from_modules(nn.Conv2d(3, 4, 3), nn.BatchNorm1d(4)),
        lambda: fast.ConvReLU2d(3, 4, 3, activation="relu"),
    ],
)
def test_constructor_refuses_other_kinds(build):
    with pytest.raises(TypeError):
        build()
