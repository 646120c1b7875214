"""A training step of every network: forward, cross entropy, backward, SGD; step time and peak memory."""

import harness
import pytest

from cnnfast import models
from cnnfast.benchmarking.plain import BUILDERS

NETWORKS = [name for name in BUILDERS if name in models.list_models()]
# Networks with large maps or large fully connected layers train on smaller batches.
SMALL_BATCH = {"nin": 16, "nin_single_1x1": 16, "alexnet": 16, "alexnet_paper": 16, "vgg11": 16}
CASES = [(name, SMALL_BATCH.get(name, 32)) for name in NETWORKS]


@pytest.mark.parametrize("contender", harness.contenders("training"))
@pytest.mark.parametrize(("network", "batch"), CASES)
def test_training_step(network, batch, contender, measure):
    measure(network, batch, "training")
