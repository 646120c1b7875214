"""What the tests of frozen networks share."""

import copy
import os

import pytest
import torch

from cnnfast import _ext

needs_extension = pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")


def takes_pairs():
    """Whether all convolutions of bfloat16 values multiply packed pairs here."""
    return "CNNFAST_BF16_PAIRS" in os.environ or _ext.active_isa() == "amx"


def takes_fixed_point():
    """Whether Winograd's products are those of whole numbers where values are bfloat16."""
    return _ext.active_isa() in ("avx512_vnni", "avx512_bf16")


def widens_all():
    """Whether those of more than a few pixels are all computed on widened values."""
    return not takes_pairs() and _ext.active_isa() != "avx512_bf16"


def truth(model, x):
    """The model's answer in float64."""
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(x.double())


def assert_near(actual, wanted, relative=2e-5):
    """float32 values against float64 truth, relative to the largest."""
    assert actual.dtype == torch.float32 and actual.shape == wanted.shape
    largest = wanted.abs().max().item() if wanted.numel() else 0.0
    torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=relative * max(largest, 1e-3))


def steps_of(frozen, x):
    """What describe_plan says of the steps for x."""
    return torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan)


def assert_independent_of_threads(frozen, x):
    wanted, threads = frozen(x), torch.get_num_threads()
    try:
        for team in (1, 2, 3):
            torch.set_num_threads(team)
            assert torch.equal(frozen(x), wanted)
    finally:
        torch.set_num_threads(threads)
