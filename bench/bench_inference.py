"""Inference of every network, batch 1 and 16: eager PyTorch, its compilers, every installed peer, cnnfast."""

import harness
import pytest

from cnnfast import models


@pytest.mark.parametrize("contender", harness.contenders("inference"))
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("network", models.list_models())
def test_inference(network, batch, contender, measure):
    measure(network, batch)
