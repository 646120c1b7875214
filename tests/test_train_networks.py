"""Every network trains and is evaluated with its own settings: optimiser, image size, augmentation."""

import math

import pytest
from training_support import few_images, run

from cnnfast import models
from cnnfast.train import build
from cnnfast.training.settings import settings_for

LARGE = {"alexnet", "alexnet_paper", "vgg11"}  # 30 to 129 million parameters
NETWORKS = [
    pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in models.list_models()
]


def splits():
    return tuple((images[:24], labels[:24]) for images, labels in few_images())


@pytest.mark.parametrize("name", NETWORKS)
def test_network_trains_with_its_own_settings(name):
    settings = settings_for(name, epochs=1, batch_size=8, train_images=16)
    net = build(settings)
    sizes = set()
    net.register_forward_pre_hook(lambda net, inputs: sizes.add(tuple(inputs[0].shape[1:])))
    # A convolution's bias in front of a batch norm has no gradient; weights all have one.
    weights = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    before = [weight.detach().clone() for weight in weights]
    _, (epoch,) = run(settings, splits(), net)
    assert math.isfinite(epoch.loss) and 0 <= epoch.test_accuracy <= 1
    assert sizes == {(1, settings.resize or 28, settings.resize or 28)}
    assert not any(weight.equal(old) for weight, old in zip(weights, before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11_small", "googlenet", "resnet18", "densenet"])
def test_loss_falls_on_images_seen_before(name):
    resize = 224 if name == "vgg11_small" else 32  # the smallest that the network takes
    settings = settings_for(name, epochs=6, batch_size=8, train_images=24, resize=resize)
    _, history = run(settings, splits())
    assert history[-1].loss < history[0].loss
