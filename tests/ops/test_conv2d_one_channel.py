"""conv2d of grey images into few channels: the kernel with pixels in its lanes, against float64."""

import pytest
import torch
import torch.nn.functional as F

from cnnfast import ops

from .support import ACTIVATIONS, needs_extension

pytestmark = needs_extension


def _check(x, weight, bias, scale=None, activation="none", **options):
    wanted = F.conv2d(x.double(), weight.double(), None, **options)
    if scale is not None:
        wanted = wanted * scale.double().view(-1, 1, 1)
    if bias is not None:
        wanted = wanted + bias.double().view(-1, 1, 1)
    wanted = {"none": wanted, "relu": wanted.relu(), "sigmoid": wanted.sigmoid()}[activation]
    actual = ops.conv2d(x, weight, bias, scale, None, activation=activation, **options)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", range(1, 18))
def test_conv2d_one_channel_into_few(channels):
    torch.manual_seed(channels)
    weight, bias = torch.randn(channels, 1, 5, 5), torch.randn(channels)
    for activation in ACTIVATIONS:
        _check(torch.randn(3, 1, 9, 28), weight, bias, torch.randn(channels), activation, padding=2)


@pytest.mark.parametrize("width", [1, 3, 15, 16, 17, 31, 32, 33, 48, 63, 65, 131])
def test_conv2d_one_channel_widths(width):
    for channels in (1, 6, 8, 12, 16):
        x, weight = torch.randn(2, 1, 5, width), torch.randn(channels, 1, 3, 3)
        _check(x, weight, torch.randn(channels), activation="relu", padding=1)


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": (2, 1)}, {"stride": (1, 2)}, {"dilation": (2, 3)}, {"padding": (0, 3)}],
    ids=str,
)
def test_conv2d_one_channel_options(options):
    _check(torch.randn(2, 1, 19, 23), torch.randn(7, 1, 3, 5), None, **options)


def test_conv2d_one_channel_in_any_number_of_threads():
    x, weight = torch.randn(5, 1, 37, 41), torch.randn(6, 1, 5, 5)
    threads = torch.get_num_threads()
    first = ops.conv2d(x, weight)
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(ops.conv2d(x, weight), first)
    finally:
        torch.set_num_threads(threads)


def test_conv2d_one_channel_keeps_special_values_in_their_receptive_field():
    x, weight = torch.randn(1, 1, 12, 40), torch.randn(6, 1, 3, 3)
    clean = ops.conv2d(x, weight, padding=(1, 1))
    x[0, 0, 5, 17] = float("nan")
    dirty = ops.conv2d(x, weight, padding=(1, 1))
    touched = torch.zeros(12, 40, dtype=torch.bool)
    touched[4:7, 16:19] = True
    assert dirty[0][:, touched].isnan().all()
    assert torch.equal(dirty[0][:, ~touched], clean[0][:, ~touched])
