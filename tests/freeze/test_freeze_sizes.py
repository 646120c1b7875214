"""Forwards that decide by sizes or kinds of tensors: frozen for the sizes that take the example's path."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast
from cnnfast.freeze import FrozenNet
from cnnfast.fuse.sizes import sizes_fit

from .support import assert_near, needs_extension

pytestmark = needs_extension


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.down, self.same, self.out = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3, 1, 1),
            nn.Conv2d(8, 4, 1),
        )
        self.eval()

    def forward(self, x):
        return self.function(self, x)


def divisible(net, x):
    h, w = x.shape[-2:]
    if h % 4 != 0 or w % 4 != 0:
        raise ValueError(f"{h} x {w} is not divisible by 4")
    return net.out(net.same(net.down(x)))


def resized_unless_equal(net, x):
    y = net.same(F.max_pool2d(net.down(x), 2))
    y = F.interpolate(y, scale_factor=4)
    if y.shape[2:] != x.shape[2:]:
        y = F.interpolate(y, size=x.shape[2:], mode="bilinear")
    return net.out(y)


def cropped_by_difference(net, x):
    y = F.conv2d(net.down(x), net.same.weight)
    skip = net.down(x)
    difference = skip.size(-1) - y.size(-1)
    if skip.size(-1) != y.size(-1):
        skip = skip[:, :, :-difference, :-difference]
    return net.out(y + skip)


def larger_side(net, x):
    y = net.down(x)
    y = F.avg_pool2d(y, 2) if max(y.size(2), y.size(3)) > 8 and not y.size(2) <= 4 else y
    return net.out(net.same(y))


def by_products(net, x):
    y = net.down(x)
    if y.size(2) * y.size(3) >= 64 or x.numel() < 200:
        y = net.same(y)
    return net.out(y)


DECISIONS = {
    f.__name__: f for f in (divisible, resized_unless_equal, cropped_by_difference, larger_side, by_products)
}
SIZES = list(itertools.product((1, 3), (8, 15, 16, 32), (8, 12, 18, 31)))


@pytest.mark.parametrize("example", [(1, 16, 16), (2, 32, 24), (1, 7, 8)], ids=str)
@pytest.mark.parametrize("name", DECISIONS)
def test_frozen_for_sizes_of_the_same_path(name, example):
    """Other sizes are an error; none gives other values than the network."""
    model, (batch, *image) = Net(DECISIONS[name]), example
    x = torch.randn(batch, 3, *image)
    if name == "divisible" and image[0] % 4:
        with pytest.raises(ValueError, match="not divisible by 4"):
            cnnfast.freeze(model, x)
        return
    frozen = cnnfast.freeze(model, x, strict=name != "resized_unless_equal")
    assert frozen.report().coverage.multiply_adds == 1.0
    if name == "cropped_by_difference":  # by as much for all sizes
        assert isinstance(frozen, FrozenNet)
    else:
        assert "decides by sizes, and is frozen for those with" in frozen.report().notes[0]
    met = 0
    for n, h, w in [example, *SIZES]:
        x = torch.randn(n, 3, h, w)
        with torch.no_grad():
            try:
                got = frozen(x)
            except RuntimeError as error:
                assert f"takes another path for inputs of [[{n}, 3, {h}, {w}]]" in str(error)
                continue
            assert_near(got, model(x).double())
            met += 1
    assert met > 1


def test_conditions_read_as_python():
    (note,) = cnnfast.freeze(Net(divisible), torch.randn(1, 3, 16, 16)).report().notes
    assert note.endswith("frozen for those with (size(2) % 4) == 0 and (size(3) % 4) == 0.")


def asserting(net, x):
    assert x.dim() == 4 and x.shape[1] == net.down.in_channels and len(x.shape) == 4, "wrong input"
    if not x.is_floating_point() or x.dtype != torch.float32 or x.is_cuda:
        x = x.float()
    if isinstance(x, (list, tuple)):
        x = torch.cat(x, 1)
    assert isinstance(x, torch.Tensor) and not isinstance(x.size(1), torch.Tensor)
    total = sum(i for i in range(x.size(1)))
    n, c, _, _ = sizes = tuple(x.shape)
    if isinstance(c, int) and c == 3 and len(sizes) == 4:
        x = torch.as_tensor(x) * torch.as_tensor(total, dtype=torch.float32).item()
    x = torch.as_tensor(x, dtype=torch.float32, device="cpu")
    return net.out(net.same(net.down(x)))


def test_what_holds_for_all_sizes_is_no_condition(tmp_path):
    """Ranks, channels and kinds: one plan, which saves to a file."""
    model = Net(asserting)
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 16, 16), strict=True)
    assert isinstance(frozen, FrozenNet) and not frozen.report().notes
    again = cnnfast.load(frozen.save(tmp_path / "net"))
    for size in ((1, 3, 16, 16), (3, 3, 9, 20)):
        x = torch.randn(size)
        with torch.no_grad():
            assert_near(again(x), model(x).double())


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: net.out(net.down(x) if x.mean() > 0 else net.same(net.down(x))),
        lambda net, x: net.out(net.down(x) if x.is_contiguous() else net.same(net.down(x))),
        lambda net, x: net.out(net.down(x) if x.stride(1) > 1 else net.same(net.down(x))),
        lambda net, x: net.out(sum(net.down(x)[:, :, i : i + 1] for i in range(x.size(2) // 2))),
        lambda net, x: net.out(net.down(x) if x.requires_grad else net.same(net.down(x))),
    ],
    ids=["values", "layout", "strides", "rows", "gradients"],
)
def test_what_sizes_do_not_tell_is_left_alone(function):
    model, x = Net(function), torch.randn(2, 3, 16, 16)
    frozen = cnnfast.freeze(model, x)
    assert frozen.report().left_out
    for images in (
        x,
        -x.abs(),
        x.abs().contiguous(memory_format=torch.channels_last),
        torch.randn(1, 3, 9, 8),
    ):
        with torch.no_grad():
            assert_near(frozen(images), model(images).double())


class ChannelsLast(nn.Module):
    """A block whose second dimension is the height, which no layer asks for as it does for channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y * 2 if x.shape[1] % 2 == 0 else y


def test_blocks_in_channels_last_do_not_take_heights_for_channels():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.inner = nn.Conv2d(3, 4, 3, padding=1), ChannelsLast()

        def forward(self, x):
            x = self.conv(x).permute(0, 2, 3, 1)
            if x.sum() < 1e9:
                x = self.inner(x)
            return x

    model = Turned().eval()
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 8, 9))
    with torch.no_grad():
        for size in ((2, 3, 8, 9), (1, 3, 6, 5), (1, 3, 7, 8)):
            x = torch.randn(size)
            assert_near(frozen(x), model(x).double())


def test_batches_of_one_decide():
    """Broadcasting has asked for the batch before the forward does."""

    def by_batch(net, x):
        y = net.down(x) + net.down(x).mean((0, 2, 3), keepdim=True)
        return net.out(y if x.shape[0] == 1 else net.same(y))

    for batch in (1, 2):
        model = Net(by_batch)
        frozen = cnnfast.freeze(model, torch.randn(batch, 3, 16, 16))
        with torch.no_grad():
            x = torch.randn(batch, 3, 12, 20)
            assert_near(frozen(x), model(x).double())
            with pytest.raises(RuntimeError, match="takes another path"):
                frozen(torch.randn(3 - batch, 3, 16, 16))


def test_sums_that_broadcast_decide():
    """Layers that take two equal sizes take others as well."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, a, b):
            y = self.conv(a) + self.conv(b)
            return y if a.shape == b.shape else y * 2

    model = Two().eval()
    a, b, row = torch.randn(1, 3, 8, 9), torch.randn(1, 3, 8, 9), torch.randn(1, 3, 8, 1)
    frozen = cnnfast.freeze(model, (a, b))
    with torch.no_grad():
        assert_near(frozen(b, a), model(b, a).double())
        try:
            assert_near(frozen(a, row), model(a, row).double())
        except RuntimeError as error:
            assert "takes another path" in str(error)


class Outer(nn.Module):
    """A block inside decides, by sizes that are not those of the network's input."""

    def __init__(self):
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 3, 3, 2), Net(resized_unless_equal)

    def forward(self, x):
        return self.inner(self.first(x))


def test_conditions_of_blocks_are_of_the_networks_input():
    model = Outer().eval()
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 17, 33), strict=True)
    with torch.no_grad():
        for size in ((1, 3, 17, 33), (2, 3, 18, 10), (1, 3, 33, 25)):
            x = torch.randn(size)
            assert_near(frozen(x), model(x).double())
        with pytest.raises(RuntimeError, match="takes another path"):
            frozen(torch.randn(1, 3, 20, 17))


class Skips(nn.Module):
    """Blocks that are given a skip, or None; a forward around them that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.block, self.plain = Block(6), Block(3)

    def forward(self, x):
        if x.sum() < 1e9:
            x = self.block(x, x)
        return self.plain(x, None)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x, skip):
        if skip is not None:
            x = torch.cat([x, skip], 1)
        return F.relu(self.conv(x))


def test_arguments_that_are_none():
    torch.manual_seed(0)
    model, x = Skips().eval(), torch.randn(2, 3, 8, 8)
    frozen = cnnfast.freeze(model, x)
    assert frozen.report().coverage.multiply_adds == 1.0
    with torch.no_grad():
        assert_near(frozen(x), model(x).double())
    with pytest.raises(RuntimeError, match="frozen with skip=None"):
        frozen.network.plain(x, 2 * x)


def test_conditions_script_and_export(tmp_path):
    model, x = Net(divisible), torch.randn(1, 3, 16, 16)
    frozen = cnnfast.freeze(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(frozen)
    other = torch.randn(2, 3, 20, 8)
    assert torch.equal(scripted(other), frozen(other))
    with pytest.raises(Exception, match="takes another path"):
        scripted(torch.randn(1, 3, 18, 16))
    compiled = torch.compile(frozen, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), frozen(x))


@pytest.mark.parametrize(
    ("program", "fits"),
    [
        ((11, 0, 2), lambda h, w: True),
        ((11, 0, 3), lambda h, w: False),
        ((1, 0, 0, 0, 3, 0, 5, 0, 1, 0, 0, 0, 8, 2, 3, 10, 4, 1), lambda h, w: h % 3 == 0),
        ((1, 0, 0, 1, 0, 1, 9, 0, 1, 10, 2, 0), lambda h, w: not h < w),
        ((1, 0, 0, 1, 0, 1, 6, 0, 1, 7, 0, 1, 4, 2, 3, 0, 2, 0, 8, 4, 5, 10, 6, 1),
         lambda h, w: max(h, w) // min(h, w) == 2),
        ((1, 0, 0, 1, 0, 1, 3, 0, 1, 2, 0, 2, 0, 30, 0, 9, 3, 4, 10, 5, 1), lambda h, w: h + h * w < 30),
    ],
)  # fmt: skip
def test_programs(program, fits):
    for h, w in itertools.product(range(1, 9), repeat=2):
        assert sizes_fit([torch.empty(h, w)], list(program)) == fits(h, w)
