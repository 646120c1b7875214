"""Forwards that write to or draw from what lies beside their module: their children are fused one by one."""

import copy
import itertools
import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import cnnfast

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
LOG = logging.getLogger("a network")
CALLS, SEEN = 0, {"calls": 0}


class Statistics:
    """An object of the user's."""

    def __init__(self):
        self.calls, self.parts = 0, [SimpleNamespace(last=0)]

    def __call__(self):
        self.calls += 1
        return self.calls


def count_globally():
    SEEN["calls"] += 1
    return SEEN["calls"]


class Net(nn.Module):
    """What a forward does with numbers of its own, by name."""

    total = 0

    def __init__(self, what):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.what, self.seen, self.steps = getattr(type(self), what), Statistics(), itertools.count(1)
        self.drawn = random.Random(3)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x))) * self.what(self)

    def attribute(self):
        self.seen.calls += 1
        return self.seen.calls

    def called(self):
        return self.seen()

    def nested(self):
        self.seen.parts[0].last += 1
        return self.seen.parts[0].last

    def of_class(self):
        Net.total += 1
        return Net.total

    def of_module(self):
        global CALLS
        CALLS += 1
        return CALLS

    def in_a_function(self):
        return count_globally()

    def iterator(self):
        return next(self.steps)

    def generator(self):
        return self.drawn.random()

    def python(self):
        return random.random()

    def numpy(self):
        return float(np.random.rand())

    def torch(self):
        return torch.rand(1).item()

    def logged(self):
        LOG.debug("called with %s", self.seen.calls)
        return len(self.seen.parts)


KINDS = [
    name for name, value in vars(Net).items() if callable(value) and name[0] != "_" and name != "forward"
]


def reset():
    global CALLS
    CALLS, SEEN["calls"], Net.total = 0, 0, 0
    random.seed(1), np.random.seed(1), torch.manual_seed(1)


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("inside", [False, True])
def test_numbers_beside_the_module_are_those_of_the_call(what, inside):
    net = Net(what)
    model = (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), net) if inside else net).eval()
    reset()
    fused = cnnfast.fuse(copy.deepcopy(model))
    frozen = None if what in ("iterator", "generator") else cnnfast.freeze(copy.deepcopy(model), IMAGE)
    assert CALLS == SEEN["calls"] == Net.total == 0
    results = []
    for network in filter(None, (model, fused, frozen)):
        reset()
        with torch.no_grad():
            results.append(torch.stack([network(IMAGE) for _ in range(3)]))
    for got in results[1:]:
        torch.testing.assert_close(got, results[0], rtol=0, atol=1e-4)
    report = fused.report()
    assert report["2.norm" if inside else "norm"].status == ("fused" if what == "logged" else "eager")
    assert bool(report.notes) == (what != "logged")
    if inside:
        assert report["0"].status == "fused" and all("'2' (Net)" in note for note in report.notes)


def test_random_numbers_go_on_where_they_were():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Net("torch"))
    others = nn.Sequential(Net("python"), Net("numpy"))
    reset()
    cnnfast.fuse(others)
    cnnfast.freeze(model, IMAGE)
    after = random.random(), np.random.rand(), torch.rand(3)
    reset()
    assert after[:2] == (random.random(), np.random.rand()) and torch.equal(after[2], torch.rand(3))
