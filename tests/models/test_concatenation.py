"""Whole networks with concatenations, forward and backward: nothing is copied to concatenate."""

import pytest
import torch
import torch.nn.functional as F

import cnnfast
from cnnfast import _ext
from cnnfast.benchmarking.plain import get_plain

pytestmark = pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")

SIZES = {"densenet": 32, "googlenet": 48, "inception_net": 28}


def _calls(net, x):
    """Names of all ATen and cnnfast operators that one training step calls, and the loss."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss = F.cross_entropy(net(x), torch.zeros(len(x), dtype=torch.long))
        loss.backward()
    return {event.name for event in profile.events() if "::" in event.name}, loss


@pytest.mark.parametrize("fused", [False, True], ids=["module", "fuse"])
@pytest.mark.parametrize("name", SIZES)
def test_network_trains_without_concatenating(name, fused):
    torch.manual_seed(0)
    net = cnnfast.fuse(get_plain(name)) if fused else cnnfast.models.get_model(name)
    calls, loss = _calls(net.train(), torch.rand(3, 1, SIZES[name], SIZES[name]))
    assert {"aten::cat", "aten::concat", "aten::stack"}.isdisjoint(calls)
    assert {"cnnfast::inception", "cnnfast::dense_block"} & calls and loss.isfinite()


def test_plain_networks_concatenate():
    """The check above would see it."""
    calls, _ = _calls(get_plain("densenet").train(), torch.rand(3, 1, 32, 32))
    assert "aten::cat" in calls
