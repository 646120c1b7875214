"""A training step of every network: forward, cross entropy, backward, SGD; step time and peak memory.

In float32 and, for all contenders alike, under autocast to bfloat16.
"""

import harness
import pytest

from cnnfast import models
from cnnfast.benchmarking.case import DTYPES

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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("contender", harness.contenders("training"))
@pytest.mark.parametrize(("network", "batch"), CASES)
def test_training_step(network, batch, contender, dtype, measure):
    measure(network, batch, "training", dtype)
