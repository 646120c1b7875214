"""A training step of every network: forward, cross entropy, backward, SGD; step time and peak memory."""

import harness
import pytest

from cnnfast import models

# Steps of small networks are short: large batches. Large maps and fully connected layers: small ones.
BATCHES = {
    "lenet": 256,
    "inception_net": 256,
    "residual_net": 256,
    "alexnet": 16,
    "alexnet_paper": 16,
    "vgg11": 16,
    "nin": 16,
    "nin_single_1x1": 16,
}
CASES = [(name, BATCHES.get(name, 32)) for name in models.list_models()]


@pytest.mark.parametrize("contender", harness.contenders("training"))
@pytest.mark.parametrize(("network", "batch"), CASES)
def test_training_step(network, batch, contender, measure):
    measure(network, batch, "training")
