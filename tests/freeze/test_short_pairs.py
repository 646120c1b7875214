"""Layers of many weights and few pixels keep their bfloat16 weights in 12 bits each (cpu/short_pairs.h),
without loss: results are those of whole weights, bit for bit."""

import pytest
import torch
from torch import nn

import cnnfast
from cnnfast import _ext

from .support import assert_independent_of_threads, needs_extension, steps_of, truth

pytestmark = [
    needs_extension,
    pytest.mark.skipif(_ext.active_isa() == "portable", reason="takes whole pairs"),
]

IN, OUT = 777, 700
# Of one register block.
FEW = {"avx2": 4, "avx512": 8, "avx512_vnni": 8, "avx512_bf16": 8, "amx": 7}.get(_ext.active_isa())


def normal():
    return torch.randn(OUT, IN) / IN**0.5


def pruned():
    return normal() * (torch.rand(OUT, IN) < 0.3)


def of_any_size():
    """More exponents than codes: most blocks are stored as they are."""
    return normal() * 2.0 ** torch.randint(-30, 20, (OUT, IN))


def few_of_any_size():
    return torch.where(torch.rand(OUT, IN) < 1e-4, of_any_size(), normal())


WEIGHTS = [normal, pruned, of_any_size, few_of_any_size]


def layer(make, bias=True):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(IN, OUT, bias=bias), nn.ReLU()).eval()
    with torch.no_grad():
        model[1].weight.copy_(make().bfloat16())
    return model


def features(count, seed=0):
    torch.manual_seed(seed)
    return torch.randn(count, IN, 1, 1).bfloat16().float()


def frozen(model, x):
    return cnnfast.freeze(model, x, dtype=torch.bfloat16, strict=True)


@pytest.mark.parametrize("make", WEIGHTS)
@pytest.mark.parametrize("count", [1, 2, 3, FEW])
def test_few_features_take_short_pairs(make, count):
    model, x = layer(make), features(count)
    result = frozen(model, x)
    assert "short pairs" in steps_of(result, x)
    got, wanted = result(x).double(), truth(model, x)
    sizes = truth(nn.Sequential(model[0], _absolute(model[1])), x.abs())
    assert ((got - wanted).abs() <= wanted.abs() * 2.0**-8 + 1e-6 * sizes).all()
    assert_independent_of_threads(result, x)


def _absolute(linear):
    copy = nn.Linear(IN, OUT)
    with torch.no_grad():
        copy.weight.copy_(linear.weight.abs())
        copy.bias.copy_(linear.bias.abs())
    return copy


@pytest.mark.skipif(_ext.active_isa() == "amx", reason="tiles add in another order")
@pytest.mark.parametrize("make", WEIGHTS)
def test_results_are_those_of_whole_pairs(make):
    """Which a larger batch takes."""
    model, x = layer(make), features(16)
    result = frozen(model, x)
    assert "short pairs" not in steps_of(result, x) and "pairs" in steps_of(result, x)
    alone = torch.cat([result(x[i : i + FEW]) for i in range(0, 16, FEW)])
    assert torch.equal(alone, result(x))


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_special_weights_and_features_stay(special):
    model, x = layer(normal, bias=False), features(3)
    with torch.no_grad():
        model[1].weight[5, 7] = special
        model[1].weight[600, 776] = special
    x[1, 100] = special
    got, wanted = frozen(model, x)(x), truth(model, x)
    assert torch.equal(got.isnan(), wanted.isnan()) and torch.equal(got.isinf(), wanted.isinf())
    finite = wanted.isfinite()
    torch.testing.assert_close(got[finite].double(), wanted[finite], rtol=2.0**-7, atol=1e-3)


@pytest.mark.parametrize("side", [2, 1])
def test_convolutions_of_few_pixels(side):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1024, 640, 1), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.copy_((model[0].weight * 4).bfloat16())
    x = torch.randn(1, 1024, side, side).bfloat16().float()
    result = frozen(model, x)
    assert "short pairs" in steps_of(result, x)
    got, wanted = result(x).double(), truth(model, x)
    assert ((got - wanted).abs() <= wanted.abs() * 2.0**-8 + 1e-3).all()


@pytest.mark.skipif(_ext.active_isa() == "amx", reason="tiles take 8 images and more")
def test_very_many_weights_meet_two_register_blocks():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4100, 2050)).eval()
    with torch.no_grad():
        model[1].weight.copy_(model[1].weight.bfloat16())
    x = torch.randn(FEW + 3, 4100, 1, 1).bfloat16().float()
    result = frozen(model, x)
    assert "short pairs" in steps_of(result, x)
    got, wanted = result(x).double(), truth(model, x)
    assert ((got - wanted).abs() <= wanted.abs() * 2.0**-8 + 1e-4).all()
