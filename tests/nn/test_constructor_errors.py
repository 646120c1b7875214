"""Bad constructor arguments: the message shows the call as it should be."""

import pytest
from torch import nn

import cnnfast.nn as fast


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: fast.ConvAct2d(3, 8, 3, activation="rleu"), ['ConvAct2d(..., activation="relu")']),
        (lambda: fast.ConvBNAct2d(3, 8, 3, activation="Sigmoid"), ['ConvBNAct2d(..., activation="sigmoid")']),
        (lambda: fast.LinearAct(3, 8, activation="tanh"), ["none, relu, sigmoid", "'tanh'"]),
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
        lambda: fast.ConvReLU2d(3, 4, 3, activation="relu"),
    ],
)
def test_constructor_refuses_other_kinds(build):
    with pytest.raises(TypeError):
        build()
