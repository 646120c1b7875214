"""Winograd's algorithm with products of 16-bit whole numbers, in plans of bfloat16 values."""

import pytest
import torch
from torch import nn

import cnnfast

from .support import assert_independent_of_threads, steps_of, takes_fixed_point, takes_pairs, truth

pytestmark = pytest.mark.skipif(
    takes_pairs() or not takes_fixed_point(), reason="needs AVX512-VNNI, and no tiles of AMX"
)

FIXED = "in 16-bit fixed point"
# Rounding to bfloat16 errs by 1.7e-3 of root mean square, rounding weights before by as much again.
ALLOWED = 2.8e-3


def relative_error(actual, wanted):
    return ((actual.double() - wanted).square().mean() / wanted.square().mean()).sqrt().item()


class Conv(nn.Module):
    def __init__(
        self, channels, out, kernel=3, stride=1, groups=1, behind=None, activation=None, residual=False
    ):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups)
        self.activation, self.behind, self.residual = activation, behind, residual

    def forward(self, x):
        y = self.conv(x) + x if self.residual else self.conv(x)
        if self.activation is not None:
            y = self.activation(y)
        return y if self.behind is None else self.behind(y)


def images(*shape, seed=0):
    """Values that bfloat16 holds, half of them zero, as behind a ReLU."""
    torch.manual_seed(seed)
    return torch.randn(*shape).relu().bfloat16().float()


def frozen(model, x):
    result = cnnfast.freeze(model.eval(), x, dtype=torch.bfloat16, strict=True)
    assert FIXED in steps_of(result, x), steps_of(result, x)
    return result


CASES = {
    "tiles of 4": (Conv(64, 64), (2, 64, 28, 28)),
    "tiles of 5": (Conv(64, 96), (3, 64, 14, 15)),
    "tiles of 6": (Conv(128, 128), (2, 128, 12, 12)),
    "tiles of 2": (Conv(512, 96), (1, 512, 7, 7)),
    "tiles of 3": (Conv(256, 256), (8, 256, 3, 3)),
    "5x5": (Conv(48, 64, kernel=5), (2, 48, 27, 26)),
    "odd channels": (Conv(67, 45), (3, 67, 21, 20)),
    "several chunks, the last shorter": (Conv(150, 70), (2, 150, 17, 19)),
    "groups": (Conv(128, 160, groups=2), (2, 128, 19, 20)),
    "residual": (Conv(64, 64, activation=nn.ReLU(), residual=True), (2, 64, 23, 25)),
    "sigmoid": (Conv(64, 80, activation=nn.Sigmoid()), (2, 64, 24, 24)),
    "clamp": (Conv(64, 80, activation=nn.ReLU6()), (2, 64, 24, 24)),
    "max pooling": (Conv(32, 64, behind=nn.MaxPool2d(2)), (4, 32, 56, 56)),
    "max pooling with overlap": (Conv(64, 64, behind=nn.MaxPool2d(3, 2, 1)), (8, 64, 27, 27)),
    "average pooling": (Conv(64, 64, behind=nn.AvgPool2d(2)), (8, 64, 28, 28)),
    "stride 2, tiles of 4": (Conv(128, 128, stride=2), (3, 128, 16, 32)),
    "stride 2, tiles of 5": (Conv(128, 128, stride=2), (3, 128, 20, 19)),
    "stride 2, tiles of 6": (Conv(128, 128, stride=2), (3, 128, 12, 24)),
    "stride 2, tiles of 7": (Conv(128, 256, stride=2), (3, 128, 28, 27)),
    "stride 2, odd channels": (Conv(151, 141, stride=2), (3, 151, 55, 54)),
    "stride 2, groups": (Conv(256, 256, stride=2, groups=2), (2, 256, 28, 28)),
    "stride 2, sigmoid": (Conv(128, 128, stride=2, activation=nn.Sigmoid()), (3, 128, 28, 28)),
    "stride 2, max pooling": (Conv(64, 128, stride=2, behind=nn.MaxPool2d(2)), (4, 64, 56, 56)),
    "first layer": (Conv(3, 64, kernel=7, stride=2), (2, 3, 64, 64)),
    "first layer, odd sizes": (Conv(3, 64, kernel=7, stride=2), (3, 3, 61, 47)),
    "first layer, few pixels": (Conv(3, 40, kernel=7, stride=2), (40, 3, 7, 6)),
    "first layer of grey images": (Conv(1, 64, kernel=7, stride=2), (3, 1, 45, 70)),
    "first layer of two channels": (Conv(2, 24, kernel=7, stride=2), (2, 2, 50, 50)),
    "first layer of four channels": (Conv(4, 70, kernel=7, stride=2), (2, 4, 33, 90)),
    "first layer, sigmoid": (Conv(3, 33, kernel=7, stride=2, activation=nn.Sigmoid()), (2, 3, 40, 40)),
    "first layer, max pooling": (
        Conv(3, 64, kernel=7, stride=2, activation=nn.ReLU(), behind=nn.MaxPool2d(3, 2, 1)),
        (2, 3, 224, 200),
    ),
    "first layer, no padding": (nn.Sequential(nn.Conv2d(3, 64, 7, 2)), (2, 3, 70, 66)),
    "first layer, much padding": (nn.Sequential(nn.Conv2d(3, 64, 7, 2, (9, 5))), (2, 3, 40, 36)),
    "one image": (Conv(64, 64), (1, 64, 56, 56)),
    "three rows": (Conv(64, 64), (4, 64, 3, 90)),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_are_those_of_rounding(case):
    torch.manual_seed(1)
    model, shape = CASES[case]
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    x = images(*shape)
    result = frozen(model, x)
    assert relative_error(result(x), truth(model, x)) < ALLOWED
    assert_independent_of_threads(result, x)


def test_batch_norm_on_the_way_in():
    """Padding is zero behind the norm, not in front of it."""
    torch.manual_seed(2)

    class Twice(nn.Module):
        """Two readers of the first convolution keep the norm out of it."""

        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(8, 64, 1), nn.BatchNorm2d(64)
            self.second = nn.Conv2d(64, 64, 3, padding=1)

        def forward(self, x):
            y = self.first(x)
            return self.second(torch.relu(self.norm(y))) + y

    network = Twice().eval()
    with torch.no_grad():
        network.norm.weight.uniform_(0.5, 1.5)
        network.norm.bias.uniform_(0.5, 1.0)
        network.norm.running_mean.normal_()
    x = images(2, 8, 28, 28)
    result = frozen(network, x)
    assert any("affine" in line and FIXED in line for line in steps_of(result, x).splitlines())
    assert relative_error(result(x), truth(network, x)) < 2 * ALLOWED


def test_batch_norm_in_front_of_a_first_layer():
    torch.manual_seed(3)

    class Normed(nn.Module):
        """Two readers of the first convolution keep the norm out of it; padding must not have its shift."""

        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(8, 3, 1), nn.BatchNorm2d(3)
            self.second, self.beside = nn.Conv2d(3, 32, 7, 2, 3), nn.Conv2d(3, 32, 1, 2)

        def forward(self, x):
            y = self.first(x)
            return self.second(torch.relu(self.norm(y))) + self.beside(y)

    network = Normed().eval()
    with torch.no_grad():
        network.norm.weight.uniform_(0.5, 1.5)
        network.norm.bias.uniform_(0.5, 1.0)
        network.norm.running_mean.normal_()
    x = images(3, 8, 45, 40)
    result = frozen(network, x)
    assert any("affine" in line and FIXED in line for line in steps_of(result, x).splitlines())
    assert relative_error(result(x), truth(network, x)) < 2 * ALLOWED


@pytest.mark.parametrize("size", [(224, 200), (223, 224)])
def test_strips_of_a_first_layer_are_cut_between_tiles(size):
    """Rows that the pooling wants twice, at ends of strips that are no ends of tiles, have one value."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    x = images(16, 3, *size)
    result = frozen(model, x)
    steps = steps_of(result, x).splitlines()
    strips = [i for i, line in enumerate(steps) if "depth first" in line and "rows at a time" in line]
    if not strips:
        pytest.skip("the second-level cache holds no strip, or all")
    assert any(FIXED in line for line in steps[strips[0] : strips[0] + 3]), steps
    y = result(x)
    assert relative_error(y, truth(model, x)) < ALLOWED
    assert "rows at a time" not in steps_of(result, x[:1])
    for i in (0, 7, 15):
        assert torch.equal(result(x[i : i + 1]), y[i : i + 1])
    assert_independent_of_threads(result, x)


def test_channels_of_a_concatenation_as_an_image():
    """Pixels then lie further apart than they are long."""
    torch.manual_seed(5)

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 13, 1)
            self.conv, self.beside = nn.Conv2d(3, 32, 7, 2, 3), nn.Conv2d(16, 32, 1, 2)

        def forward(self, x):
            y = self.one(x)
            return self.conv(y) + self.beside(torch.cat([y, self.other(x)], 1))

    network = Part().eval()
    x = images(2, 8, 45, 40)
    result = frozen(network, x)
    assert relative_error(result(x), truth(network, x)) < 2 * ALLOWED


def test_images_do_not_depend_on_each_other():
    model = Conv(64, 64)
    x = images(5, 64, 28, 28)
    x[3] *= 1000
    result = frozen(model, x)
    y = result(x)
    for order in ([4, 3, 2, 1, 0], [0, 1, 2, 4, 3]):
        assert torch.equal(result(x[order]), y[order])


def test_an_outlier_costs_its_neighbours_alone():
    """Other chunks of channels, other tiles and other images keep their accuracy."""
    model = Conv(128, 32)
    with torch.no_grad():
        model.conv.weight[:, 0] = 0
    x = images(2, 128, 24, 24)
    result = frozen(model, x)
    y = result(x)
    x[0, 0, 0, 0] = 1e4
    wanted = truth(model, x)
    z = result(x)
    assert torch.equal(z[1], y[1]) and torch.equal(z[0, :, 8:], y[0, :, 8:])
    # values of the same chunk there: whole numbers of a scale 1e4 / 2^14
    assert (z.double() - wanted).abs().max() < 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_in_front_of_a_first_layer(value):
    model = Conv(3, 32, kernel=7, stride=2)
    x = images(3, 3, 64, 60)
    result = frozen(model, x)
    y = result(x)
    for row, column in ((0, 0), (7, 9), (12, 12), (13, 13), (62, 59)):
        z = x.clone()
        z[1, 2, row, column] = value
        z = result(z)
        rows, columns = ([i for i in range(32) if abs(2 * i - place) <= 3] for place in (row, column))
        assert not torch.isfinite(z[1][:, rows][:, :, [i for i in columns if i < 30]]).any()
        assert torch.equal(z[0], y[0]) and torch.equal(z[2], y[2])
        assert torch.isfinite(z[1]).sum() > 32 * 31 * 29 - 32 * 9 * 9


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_stays_so_and_in_its_image(value):
    model = Conv(64, 64)
    x = images(3, 64, 20, 20)
    result = frozen(model, x)
    y = result(x)
    x[1, 5, 7, 9] = value
    z = result(x)
    assert not torch.isfinite(z[1, :, 6:9, 8:11]).any()
    assert torch.equal(z[0], y[0]) and torch.equal(z[2], y[2])


@pytest.mark.parametrize("channels, kernel, stride", [(64, 3, 1), (3, 7, 2)])
def test_weights_that_are_not_finite_reach_their_channel(channels, kernel, stride):
    model = Conv(channels, 64, kernel, stride)
    with torch.no_grad():
        model.conv.weight[7, 2, 1, 1] = float("nan")
    x = images(2, channels, 20, 20)
    y = frozen(model, x)(x)
    finite = torch.isfinite(y).all(dim=(0, 2, 3))
    assert not torch.isfinite(y[:, 7]).any() and finite.sum() == 63


LAYERS = pytest.mark.parametrize("channels, settings", [(64, (3, 1, 1)), (3, (7, 2, 3))])


@LAYERS
@pytest.mark.parametrize("size", [0.0, 1e-36, 1e-20, 1e20])
def test_sizes_of_values(channels, settings, size):
    """Far from one nothing is lost, down to 2^-100, below which values count as zero."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(channels, 64, *settings, bias=False))
    x = images(2, channels, 20, 20).mul(size).bfloat16().float()
    y, wanted = frozen(model, x)(x), truth(model, x)
    if size < 1e-30:
        assert (y.double() - wanted).abs().max() <= 64 * 9 * 2**-100
    else:
        assert relative_error(y, wanted) < ALLOWED


@pytest.mark.parametrize("channels, settings", [(128, (3, 1, 1)), (3, (7, 2, 3)), (4, (7, 2, 3))])
def test_largest_sums_stay_in_32_bits(channels, settings):
    """Every product as large as it can be, all of one sign: what scales are made for."""
    model = nn.Sequential(nn.Conv2d(channels, 32, *settings, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].weight[1::2] = -1.0
    x = torch.full((2, channels, 24, 24), 3.0)
    y, wanted = frozen(model, x)(x), truth(model, x)
    assert (y.double() - wanted).abs().max() < 2**-8 * wanted.abs().max()


def test_a_bound_on_tiles_leaves_it_out():
    model, x = Conv(64, 64), images(2, 64, 28, 28)
    result = frozen(model, x)
    assert FIXED not in steps_of(result.with_conv_attributes(largest_tile=4), x)
    assert FIXED not in steps_of(cnnfast.freeze(model, x), x)
