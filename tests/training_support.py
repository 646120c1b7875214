"""What the tests of training share."""

import functools
from dataclasses import replace

import torch
from torch import nn

from cnnfast.data import fashion_mnist
from cnnfast.train import Settings, build, train

QUICK = Settings("lenet", epochs=2, batch_size=32, optimizer="adam", lr=0.002)


@functools.cache
def few_images():
    """The first 320 training and 200 test images."""
    return tuple(
        (images[:count], labels[:count])
        for (images, labels), count in ((fashion_mnist("train"), 320), (fashion_mnist("test"), 200))
    )


def run(settings, splits, net=None, **options):
    """The trained network, and its epochs without their times."""
    net = build(settings) if net is None else net
    history = train(net, *splits, settings, device="cpu", report=lambda epoch: None, **options)
    return net, [replace(epoch, seconds=0.0) for epoch in history]


def with_dropout():
    """What LeNet lacks: random numbers in the forward pass, and buffers."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 24 * 24, 10)
    )


def assert_same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different
