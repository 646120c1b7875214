"""Linear, pooling, reshape and block modules against torch.nn's."""

import pytest
import torch
from torch import nn

import cnnfast.nn as fast

from .support import ACTIVATIONS, assert_same_training, close


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_act(activation, bias):
    layer = fast.LinearAct(12, 7, bias=bias, activation=activation)
    twin = nn.Sequential(nn.Linear(12, 7, bias=bias), ACTIVATIONS[activation]())
    twin[0].load_state_dict(layer.state_dict())
    assert_same_training(layer, twin, torch.randn(5, 12))


def test_linear_act_is_a_linear_layer_with_its_keys():
    layer = fast.LinearReLU(4, 3)
    assert isinstance(layer, nn.Linear) and layer.activation == "relu"
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_linear_act_around_an_existing_layer():
    linear = nn.Linear(4, 3)
    layer = fast.LinearAct.from_modules(linear, "sigmoid")
    assert layer.weight is linear.weight and layer.bias is linear.bias
    input = torch.randn(2, 4)
    torch.testing.assert_close(layer(input), torch.sigmoid(linear(input)))
    assert fast.LinearAct.from_modules(nn.Linear(4, 3, bias=False)).bias is None


POOLS = [
    (fast.MaxPool2d, nn.MaxPool2d, {"kernel_size": 2}),
    (
        fast.MaxPool2d,
        nn.MaxPool2d,
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1, "ceil_mode": True},
    ),
    (fast.MaxPool2d, nn.MaxPool2d, {"kernel_size": 3, "stride": 1, "dilation": 2}),
    (fast.AvgPool2d, nn.AvgPool2d, {"kernel_size": 2}),
    (fast.AvgPool2d, nn.AvgPool2d, {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False}),
    (fast.AvgPool2d, nn.AvgPool2d, {"kernel_size": 3, "stride": 2, "ceil_mode": True, "divisor_override": 5}),
]


@pytest.mark.parametrize("own, true, options", POOLS, ids=str)
def test_pool_modules(own, true, options):
    input = torch.randn(2, 5, 9, 10, requires_grad=True)
    exact = input.detach().double().requires_grad_()
    output, truth = own(**options)(input), true(**options)(exact)
    close(output, truth)
    cotangent = torch.randn(truth.shape)
    output.backward(cotangent)
    truth.backward(cotangent.double())
    close(input.grad, exact.grad)


@pytest.mark.parametrize("size", [(7, 5), (1, 1)], ids=str)
def test_global_avg_pool2d(size):
    input = torch.randn(3, 4, *size)
    output = fast.GlobalAvgPool2d()(input)
    assert output.shape == (3, 4, 1, 1)
    torch.testing.assert_close(output, input.mean((2, 3), keepdim=True))


def test_reshape_image_takes_what_a_view_would_get_right():
    reshape = fast.ReshapeImage(1, 28, 28)
    images = torch.randn(3, 1, 28, 28)
    for input in (images, images.view(3, 784), images.view(3, 28, 28), images.view(3, 1, 784)):
        assert torch.equal(reshape(input), images)
    assert reshape(images[0, 0]).shape == (1, 1, 28, 28)
    assert reshape(torch.randn(0, 784)).shape == (0, 1, 28, 28)
    colour = fast.ReshapeImage(3, 4, 5)
    assert torch.equal(colour(torch.arange(120.0).view(2, 60)), torch.arange(120.0).view(2, 3, 4, 5))


@pytest.mark.parametrize("shape", [(49, 1, 32, 32), (3, 783), (28, 3, 28, 14), (28, 784, 28)], ids=str)
def test_reshape_image_refuses_to_mix_images(shape):
    """A view to (-1, 1, 28, 28) takes the first of these and cuts 64 images out of 49."""
    with pytest.raises(RuntimeError, match=r"ReshapeImage.*\(N, 1, 28, 28\) or \(N, 784\)"):
        fast.ReshapeImage(1, 28, 28)(torch.randn(shape))


def test_residual_block():
    block = fast.ResidualBlock(5)
    conv1, conv2 = nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
    conv1.load_state_dict(block.conv1.conv.state_dict())
    conv2.load_state_dict(block.conv2.conv.state_dict())

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = conv1, conv2

        def forward(self, x):
            return torch.relu(self.conv2(torch.relu(self.conv1(x))) + x)

    assert_same_training(block, Plain(), torch.randn(2, 5, 6, 7))


def test_shapes_that_the_notes_print():
    assert fast.ConvReLU2d(2, 3, (3, 5), padding=(1, 2))(torch.randn(4, 2, 3, 5)).shape == (4, 3, 3, 5)
    assert fast.ConvReLU2d(3, 4, 3, padding=2)(torch.randn(3, 3, 100, 100)).shape == (3, 4, 102, 102)
    assert sum(p.numel() for p in fast.ConvReLU2d(3, 10, 3).parameters()) == 280
    large = fast.LinearReLU(3 * 256 * 256, 1000, device="meta")
    assert sum(p.numel() for p in large.parameters()) == 196_609_000
