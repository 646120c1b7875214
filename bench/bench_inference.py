"""Inference of every network, batch 1 and 16, against eager PyTorch and every installed peer."""

import harness
import pytest

from cnnfast import models
from cnnfast.benchmarking.plain import BUILDERS

NETWORKS = [name for name in BUILDERS if name in models.list_models()]


@pytest.mark.parametrize("contender", harness.contenders("inference"))
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("network", NETWORKS)
def test_inference(network, batch, contender, measure):
    measure(network, batch)
