"""Convolutions whose kernel covers the image: linear layers of many weights, against float64."""

import pytest
import torch

from cnnfast import ops, reference

from .support import assert_near, doubles, gradients, needs_extension, on_threads

pytestmark = needs_extension

# Images, channels, height and width, output channels.
SHAPES = [(1, 128, (3, 3), 240), (4, 65, (7, 5), 130), (3, 600, (1, 1), 450), (32, 1100, (2, 1), 121)]
LAYOUTS = {"pixels inside": torch.contiguous_format, "pixels outside": torch.channels_last}


def _tensors(shape, layout, dtype=torch.float32):
    images, channels, kernel, outputs = shape
    input = torch.randn(images, channels, *kernel).contiguous(memory_format=LAYOUTS[layout])
    weight = torch.randn(outputs, channels, *kernel) / (channels * kernel[0] * kernel[1]) ** 0.5
    weight = weight.contiguous(memory_format=LAYOUTS[layout])
    bias = torch.randn(outputs)
    assert weight.numel() > 2**18
    return [t.requires_grad_() for t in (input.to(dtype), weight, bias)]


def _check(tensors, activation, relative):
    output = ops.conv2d(*tensors, activation=activation)
    exact = doubles(tensors)
    truth = reference.conv2d(*exact, activation=activation)
    assert output.dtype == tensors[0].dtype
    assert_near(output, truth, relative)
    cotangent = torch.randn(truth.shape).to(output.dtype)
    found, true = gradients(output, cotangent, tensors), gradients(truth, cotangent.double(), exact)
    for own, right, tensor in zip(found, true, tensors, strict=True):
        assert (own is None) == (right is None)
        if own is not None:
            assert own.dtype == tensor.dtype and own.stride() == tensor.stride()
            assert_near(own, right, relative)


@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_pixel_conv(shape, layout, activation):
    input, weight, bias = _tensors(shape, layout)
    _check([input, weight, bias], activation, 1e-5)
    _check([input.detach(), weight, None], activation, 1e-5)
    _check([input, weight.detach(), bias], activation, 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_pixel_conv_of_bfloat16_images(shape, layout):
    _check(_tensors(shape, layout, torch.bfloat16), "none", 1e-2)


def test_one_pixel_conv_reads_images_of_another_layout():
    input, weight, bias = _tensors(SHAPES[1], "pixels outside")
    _check([input.detach().contiguous().requires_grad_(), weight, bias], "relu", 1e-5)


@pytest.mark.parametrize("setting", [{"padding": 1}, {"groups": 2}, {"stride": 2}, {"dilation": 2}], ids=str)
def test_settings_beside_one_pixel_conv(setting):
    groups, dilation = setting.get("groups", 1), setting.get("dilation", 1)
    input = torch.randn(2, 256, 4 * dilation + 1, 5, requires_grad=True)
    weight = torch.randn(60, 256 // groups, 5, 5 if dilation == 1 else 3, requires_grad=True)
    exact = doubles([input, weight])
    output, truth = ops.conv2d(input, weight, **setting), reference.conv2d(*exact, **setting)
    assert_near(output, truth)
    cotangent = torch.randn(truth.shape)
    for own, right in zip(
        gradients(output, cotangent, [input, weight]), gradients(truth, cotangent, exact), strict=True
    ):
        assert_near(own, right, 2e-5)


def test_one_pixel_conv_does_not_depend_on_threads():
    input, weight, bias = _tensors(SHAPES[1], "pixels outside")
    cotangent, found = torch.randn(4, 130, 1, 1), []
    for _ in on_threads(1, 2, 3):
        output = ops.conv2d(input, weight, bias)
        found.append((output, *torch.autograd.grad(output, (input, weight, bias), cotangent)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
