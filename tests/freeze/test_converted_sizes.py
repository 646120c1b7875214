"""Forwards that make whole numbers of sizes by int(), float(), math.ceil() and max(): padding, mostly."""

import builtins
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast
from cnnfast.freeze import FrozenNet

from .support import assert_near, needs_extension

pytestmark = needs_extension
SIZES = list(itertools.product((1, 2), (8, 11, 16, 21), (8, 9, 12, 30)))


def by_float_and_ceil(size: int, kernel: int, stride: int) -> int:
    return max((math.ceil(float(size) / stride) - 1) * stride + kernel - size, 0)


def by_int_and_remainder(size: int, kernel: int, stride: int) -> int:
    whole = int(size)
    assert isinstance(whole, int) and isinstance(kernel, (float, int)) and int("3") == 3
    return max(kernel - stride, 0) if whole % stride == 0 else max(kernel - whole % stride, 0)


def by_floor(size: int, kernel: int, stride: int) -> int:
    return max(-math.floor(-float(size) / stride) * stride - stride + kernel - int(size), min(int(size), 0))


def by_ceil_alone(size: int, kernel: int, stride: int) -> int:
    """Without int() or float(): max() decides."""
    return max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)


class PaddedConv(nn.Conv2d):
    def __init__(self, padding_of, *args):
        super().__init__(*args)
        self.padding_of = padding_of

    def forward(self, x):
        height, width = x.size()[-2:]
        down = self.padding_of(height, self.kernel_size[0], self.stride[0])
        right = self.padding_of(width, self.kernel_size[1], self.stride[1])
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return super().forward(x)


class Net(nn.Module):
    def __init__(self, padding_of):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            Block(PaddedConv(padding_of, 3, 8, 5, 2)), Block(PaddedConv(padding_of, 8, 8, 3, 1)),
            Block(PaddedConv(padding_of, 8, 4, 3, 2)),
        )  # fmt: skip
        self.eval()

    def forward(self, x):
        return self.layers(x).mean((2, 3))


class Block(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm2d(conv.out_channels)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


PADDINGS = [by_float_and_ceil, by_int_and_remainder, by_floor, by_ceil_alone]


@pytest.mark.parametrize("size", [(16, 8), (11, 30), (21, 9)], ids=str)
@pytest.mark.parametrize("padding_of", PADDINGS, ids=lambda f: f.__name__)
def test_padding_of_converted_sizes_is_the_convolutions(padding_of, size):
    """Sizes that are padded otherwise are an error; none gives other values than the network."""
    names = {name: globals().get(name) for name in ("int", "float", "max", "min")}
    model = Net(padding_of)
    frozen = cnnfast.freeze(model, torch.randn(1, 3, *size))
    assert frozen.report().coverage.multiply_adds == 1.0
    assert isinstance(frozen, FrozenNet) or len(frozen.plans()) == 1
    met = 0
    for n, h, w in [(1, *size), *SIZES]:
        x = torch.randn(n, 3, h, w)
        with torch.no_grad():
            try:
                got = frozen(x)
            except RuntimeError as error:
                assert "takes another path for inputs of" in str(error)
                continue
            assert_near(got, model(x).double())
            met += 1
    assert met > 1
    assert names == {name: globals().get(name) for name in names} == dict.fromkeys(names)
    assert builtins.isinstance(3, int) and isinstance(int(3.7), int)


@pytest.mark.parametrize("padding_of", [by_float_and_ceil, by_floor], ids=lambda f: f.__name__)
def test_padding_like_same_holds_for_all_sizes(padding_of, tmp_path):
    """One plan without conditions, which saves to a file; and with max() as Python's own, which decides."""
    model = Net(padding_of)
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 16, 16), strict=True)
    frozen.save(tmp_path / "net.cnnfast")
    loaded = cnnfast.load(tmp_path / "net.cnnfast")
    for n, h, w in SIZES:
        x = torch.randn(n, 3, h, w)
        with torch.no_grad():
            assert_near(loaded(x), model(x).double())
    assert len(cnnfast.freeze(Net(by_ceil_alone), torch.randn(1, 3, 16, 16)).plans()) == 1


class Exchanged(Net):
    """Height and width in the wrong order, as one package has it: right for square images."""

    def __init__(self):
        super().__init__(by_float_and_ceil)
        for block in self.layers:
            block.conv.__class__ = ExchangedConv


class ExchangedConv(PaddedConv):
    def forward(self, x):
        height, width = x.size()[2:]
        first = self.padding_of(height, self.kernel_size[0], self.stride[0])
        second = self.padding_of(width, self.kernel_size[1], self.stride[1])
        x = F.pad(x, (first // 2, first - first // 2, second // 2, second - second // 2))
        return nn.Conv2d.forward(self, x)


def capped(size: int, kernel: int, stride: int) -> int:
    """As by_float_and_ceil for images of up to 1000 pixels."""
    return max((math.ceil(float(size) / stride) - 1) * stride + kernel - size, max(0, size - 1000))


def test_padding_that_is_same_for_small_images_only():
    (note,) = cnnfast.freeze(Net(capped), torch.randn(1, 3, 16, 16)).report().notes
    assert "decides by sizes" in note and "1000" in note


def test_other_padding_is_for_the_sizes_of_the_example():
    model, x = Exchanged().eval(), torch.randn(2, 3, 16, 24)
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 32, 32))
    (note,) = frozen.report().notes
    assert "max(0, 3 + (-1 * size(2)) + (2 * (ceil(size(2) / 2))))" in note
    with torch.no_grad():
        assert_near(frozen(x), model(x).double())
    with pytest.raises(RuntimeError, match="takes another path"):
        frozen(torch.randn(2, 3, 16, 25))


@pytest.mark.parametrize("padding_of", PADDINGS[:3], ids=lambda f: f.__name__)
def test_fuse_of_converted_sizes(padding_of):
    """Forwards that only compute with sizes are fused for all of them; those that decide by them are not."""
    model = Net(padding_of)
    fused = cnnfast.fuse(model)
    for n, h, w in SIZES[::3]:
        x = torch.randn(n, 3, h, w)
        with torch.no_grad():
            assert_near(fused(x), model(x).double())


class ScaledByParameters(nn.Module):
    """Parameters take their shape from the image's channels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 2, 1)
        self.weight, self.bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x):
        y = self.conv(x)
        n, channels, height, width = y.size()
        y = self.weight.view(1, channels, 1, 1) * y + self.bias.view(1, y.shape[1], 1, 1)
        return self.out(y)


def test_parameters_shaped_by_channels_are_constants():
    model = ScaledByParameters().eval()
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 9, 9), strict=True)
    assert isinstance(frozen, FrozenNet)
    x = torch.randn(2, 3, 12, 7)
    with torch.no_grad():
        assert_near(frozen(x), model(x).double())


class ConvertedChannels(nn.Module):
    """float() and int() of numbers of channels, and padding with everything by its name."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 2, 3)

    def forward(self, x):
        y = self.conv(x) * float(x.size(1)) ** -0.5
        y = y[:, : int(y.shape[1])] / round(math.sqrt(float(y.shape[1])))
        height, width = x.shape[2:]
        sides = (height % (height - 7), int(width) % (width - 7), 0, 1)
        return self.out(F.pad(input=y, pad=sides))


def test_converted_channels_are_numbers():
    model = ConvertedChannels().eval()
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 16, 16))
    assert frozen.report().coverage.multiply_adds == 1.0
    for size in ((2, 3, 16, 16), (1, 3, 25, 16)):
        x = torch.randn(size)
        with torch.no_grad():
            try:
                assert_near(frozen(x), model(x).double())
            except RuntimeError as error:
                assert size[2] != 16 and "takes another path" in str(error)


class Radix(nn.Module):
    """Split by a number of channels, as ResNeSt does: a loop over as many pieces as the example has."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = nn.Conv2d(3, 12, 3, 1, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.conv(x)
        batch, channels = y.shape[:2]
        return self.out(sum(torch.split(y, int(channels // 3), dim=1)))


def test_loop_over_pieces_of_a_size():
    model = Radix().eval()
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 9, 9))
    assert isinstance(frozen, FrozenNet)
    x = torch.randn(2, 3, 12, 7)
    with torch.no_grad():
        assert_near(frozen(x), model(x).double())


class RowsInPieces(nn.Module):
    """The number of pieces follows from the height."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, 1, 1)

    def forward(self, x):
        return sum(piece.mean((2, 3)) for piece in self.conv(x).split(4, 2))


def test_loop_over_pieces_of_a_height_says_what_differs():
    model = RowsInPieces().eval()
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 8, 8))
    x = torch.randn(2, 3, 8, 5)
    with torch.no_grad():
        assert_near(frozen(x), model(x).double())
    with pytest.raises(RuntimeError, match="loops over 2 pieces of a tensor"):
        frozen(torch.randn(1, 3, 12, 8))
