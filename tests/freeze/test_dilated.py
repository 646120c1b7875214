"""Dilated convolutions of frozen networks: by Winograd's algorithm, and by zones that leave padding out."""

import pytest
import torch
from torch import nn

import cnnfast

from .support import assert_independent_of_threads, assert_near, needs_extension, takes_pairs, truth

pytestmark = needs_extension

# input and output channels, image, dilation, kernel, padding, stride
CASES = {
    "even": (32, 48, (24, 24), 2, 3, 2, 1),
    "odd image": (32, 32, (25, 23), 2, 3, 2, 1),
    "many phases": (64, 64, (12, 14), 4, 3, 4, 1),
    "unequal phases": (64, 64, (33, 31), 3, 3, 3, 1),
    "no padding": (32, 32, (40, 21), 4, 3, 0, 1),
    "more padding": (32, 32, (20, 20), 2, 3, 5, 1),
    "large kernel": (32, 32, (40, 40), 4, 5, 8, 1),
    "few channels": (3, 5, (17, 50), 6, 3, 6, 1),
    "groups": (64, 64, (24, 24), 2, 3, 2, 1),
    "as large as the image": (48, 40, (16, 16), 12, 3, 12, 1),
    "larger than the image": (48, 40, (14, 9), 18, 3, 18, 1),
    "rows alone": (32, 32, (12, 48), 12, 3, 12, 1),
    "strided": (32, 32, (19, 18), 12, 3, 12, 2),
    "no tap for some": (8, 8, (6, 6), 5, 3, 14, 1),
    "one tap": (32, 24, (20, 20), 3, 1, 0, 1),
}


def network(name, activation="relu"):
    ins, outs, _, dilation, kernel, padding, stride = CASES[name]
    groups = 2 if name == "groups" else 1
    torch.manual_seed(0)
    conv = nn.Conv2d(ins, outs, kernel, stride, padding, dilation, groups)
    if activation == "residual":
        return Residual(conv, outs, ins)
    layers = {"none": nn.Identity(), "relu": nn.ReLU(), "silu": nn.SiLU()}
    return nn.Sequential(conv, layers[activation], nn.Conv2d(outs, 4, 1)).eval()


class Residual(nn.Module):
    def __init__(self, conv, outs, ins):
        super().__init__()
        self.first, self.conv = (
            nn.Conv2d(ins, outs, conv.kernel_size, conv.stride, conv.padding, conv.dilation),
            conv,
        )
        self.eval()

    def forward(self, x):
        return torch.relu(self.conv(x) + self.first(x))


def images(name, batch=2):
    ins, _, size, *_ = CASES[name]
    return torch.randn(batch, ins, *size, generator=torch.Generator().manual_seed(1))


def steps_of(frozen, x):
    text = str(torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan))
    return [line for line in text.splitlines() if "conv 3x3" in line or "conv 5x5" in line]


@pytest.mark.parametrize("activation", ["none", "relu", "silu", "residual"])
@pytest.mark.parametrize("name", CASES)
def test_values(name, activation):
    model = network(name, activation)
    frozen = cnnfast.freeze(model, images(name), strict=True)
    for batch in (1, 3):
        x = images(name, batch)
        assert_near(frozen(x), truth(model, x), 4e-5)
    direct = cnnfast.freeze(model, images(name), strict=True, winograd=False)
    assert_near(direct(x), truth(model, x))


@pytest.mark.parametrize("name", ["odd image", "many phases", "as large as the image", "rows alone"])
def test_number_of_threads(name):
    x = images(name)
    assert_independent_of_threads(cnnfast.freeze(network(name), x), x)


def test_taps_in_the_padding_are_left_out():
    """Of 9 taps one, or as many as reach the image from each of its parts."""
    name = "larger than the image"
    x = images(name)
    (step,) = steps_of(cnnfast.freeze(network(name), x), x)
    assert "in 1 zones" in step
    name = "as large as the image"
    x = images(name)
    (step,) = steps_of(cnnfast.freeze(network(name), x), x)
    assert "in 9 zones" in step
    ins, outs, (height, width), *_ = CASES[name]
    useful = (16 + 2 * 4) ** 2 / (3 * 16) ** 2  # outer taps reach the image from 4 rows and 4 columns
    megaflops = 2 * 9 * ins * outs * height * width * len(x) * useful / 1e6
    assert float(step.split()[-2]) == pytest.approx(megaflops, rel=1e-4)


def test_nan_reaches_what_a_tap_reaches():
    name = "as large as the image"
    model, x = network(name, "none")[:1], images(name)
    frozen = cnnfast.freeze(nn.Sequential(model[0], nn.Identity()), x)
    x[0, 3, 2, 5] = float("nan")
    with torch.no_grad():
        assert torch.equal(frozen(x).isnan(), model(x).isnan())


@pytest.mark.parametrize("activation", ["silu", "residual"])
@pytest.mark.parametrize("name", CASES)
def test_bfloat16(name, activation):
    model, x = network(name, activation), images(name)
    frozen = cnnfast.freeze(model, x, dtype=torch.bfloat16)
    wanted = truth(model, x)
    assert (frozen(x) - wanted).abs().max() <= 3e-2 * wanted.abs().max()
    if takes_pairs() and name in ("as large as the image", "larger than the image"):
        assert all("zones" in step for step in steps_of(frozen, x))
