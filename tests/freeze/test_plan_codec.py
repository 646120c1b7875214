"""Plans as words: what is written is read, and damaged words are an error."""

import random
from dataclasses import replace

import pytest
import torch
from fuse.networks import NETWORKS, images, make
from torch import nn

import cnnfast
from cnnfast.plan.build import build
from cnnfast.plan.codec import Constants, decode, encode
from cnnfast.plan.nodes import (
    FLOAT_FORMAT,
    FORMAT,
    MAGIC,
    OLDEST_FORMAT,
    STORAGE_FORMAT,
    PlanError,
    Storage,
)
from cnnfast.plan.show import lines

from .support import needs_extension


def words_of(name):
    built = build(make(name), (images(name),))
    return built, encode(built.plan, built.weights, checksum=lambda data: 7)


@pytest.mark.parametrize("name", NETWORKS)
def test_plan_words_round_trip(name):
    built, words = words_of(name)
    assert words.dtype == torch.int64 and words.dim() == 1
    assert words[:5].tolist() == [MAGIC, FLOAT_FORMAT, 7, 7, built.weights.numel()]
    assert words[5] == len(built.plan.nodes) == len(built.names)
    assert decode(words) == built.plan


def test_plan_words_of_bfloat16_values():
    """Two words more, which say how values and results are stored."""
    built, words = words_of("resnet")
    half = replace(built.plan, values=Storage.BFLOAT16)
    longer = encode(half, built.weights, checksum=lambda data: 7)
    assert longer.tolist() == [MAGIC, STORAGE_FORMAT, *words[2:7].tolist(), 1, 0, *words[7:].tolist()]
    assert decode(longer) == half and half.half and not built.plan.half
    with pytest.raises(PlanError, match="values are unknown to this version"):
        decode(torch.cat([longer[:7], torch.tensor([2]), longer[8:]]))


def test_plan_words_by_hand():
    """The layout that C++ reads, spelt out for one layer."""
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, (1, 2), (2, 1), (1, 0), bias=False), torch.nn.ReLU())
    built = build(model, (torch.randn(1, 2, 4, 4),))
    words = encode(built.plan, built.weights, checksum=lambda data: 7).tolist()
    assert built.weights.numel() == 16 and built.weights[:12].equal(model[0].weight.detach().view(-1))
    # operation, activation and its two numbers, inputs, attributes
    header = [MAGIC, FLOAT_FORMAT, 7, 7, 16, 2, 1]
    conv = [1, 1, 0, 0, 1, 0, 17, 0, 3, 2, 1, 2, -1, 2, 1, 1, 0, 1, 0, 1, 1, 1, 6, 0]
    assert words == [*header, *[0, 0, 0, 0, 0, 2, 4, 2], *conv, 1]


def test_plan_damaged_words_are_an_error_or_a_plan():
    _, words = words_of("resnet")
    choice = random.Random(1)
    for _ in range(300):
        damaged = words.clone()
        damaged[choice.randrange(len(words))] = choice.choice([-1, 0, 1, 5, 99, 2**40, -(2**62)])
        damaged = damaged[: choice.choice([len(words), choice.randrange(len(words))])]
        try:
            decode(damaged)
        except PlanError as error:
            assert "plan" in str(error)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: plan[:20], "ends in the middle"),
        (lambda plan: plan.double(), "1-D int64"),
        (
            lambda plan: torch.cat([plan[:1], torch.tensor([FORMAT + 1]), plan[2:]]),
            f"format {FORMAT + 1}, this cnnfast reads formats {OLDEST_FORMAT} to {FORMAT}: update",
        ),
        (lambda plan: torch.cat([plan[:1], plan[1:2] - 2, plan[2:]]), "save the network again"),
        (lambda plan: torch.cat([plan[:1] + 1, plan[1:]]), "no plan of a frozen network"),
        (lambda plan: torch.cat([plan, plan[:1]]), "outputs are damaged"),
        (lambda plan: torch.cat([plan[:7], plan[7:8] + 77, plan[8:]]), "unknown to this version"),
    ],
    ids=["short", "dtype", "newer", "older", "foreign", "long", "operation"],
)
def test_plan_error_says_what_is_wrong(change, words):
    with pytest.raises(PlanError, match=words):
        decode(change(words_of("lenet")[1]))


def test_constants_are_aligned():
    constants = Constants()
    places = [constants.add(torch.ones(n)) for n in (1, 16, 17, 3)]
    assert places == [0, 16, 32, 64] and constants.tensor().numel() == 80
    assert constants.tensor().sum() == 37


def test_plan_in_words():
    built, _ = words_of("resnet")
    text = lines(built.plan, built.names)
    assert len(text) == len(built.plan.nodes)
    assert "stem.0 + stem.1 + stem.2" in text[1] and "conv2d 3→8 3×3, padding 1 + relu" in text[1]
    assert "max_pool2d 3×3, stride 2, padding 1" in text[2]
    assert "+ node 2 + relu" in text[4]


@needs_extension
def test_plan_of_format_3_is_still_read():
    """Files of the version before: activations without numbers."""
    x = torch.randn(2, 3, 14, 12)
    frozen = cnnfast.freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()), x)
    words, plan = frozen.plan.tolist(), decode(frozen.plan)
    at, kept = 7, words[:7]
    for _ in plan.nodes:
        kept += words[at : at + 2]
        at += 4
        for _ in range(2):
            kept += words[at : at + 1 + words[at]]
            at += 1 + words[at]
    kept += words[at:]
    kept[1] = 3
    kept[2] = torch.ops.cnnfast.checksum(torch.tensor(kept[3:]))
    old = torch.tensor(kept)
    assert decode(old) == plan
    assert torch.equal(torch.ops.cnnfast.run_plan([x], frozen.weights, old)[0], frozen(x))
