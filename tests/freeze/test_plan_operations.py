"""Every operation that a plan holds, against eager PyTorch: sizes, batches, odd channels, NaN and Inf."""

import pytest
import torch

import cnnfast
from cnnfast.plan.codec import decode

from .plan_functions import Woven
from .plan_interpreter import run
from .plan_operations import CASES, NOT_EMPTY, made
from .support import assert_near, needs_extension, truth

pytestmark = needs_extension
EACH = pytest.mark.parametrize("name", CASES)


@EACH
def test_plan_operation_values(name):
    model = made(name)
    x = torch.randn(2, 3, 14, 12)
    frozen = cnnfast.freeze(model, x, strict=True)
    for batch, height, width in ((2, 14, 12), (1, 14, 12), (3, 16, 20), (0, 14, 12)):
        if batch == 0 and name in NOT_EMPTY:
            continue
        x = torch.randn(batch, 3, height, width)
        wanted = truth(model, x)
        actual = frozen(x)
        assert_near(actual, wanted)
        (interpreted,) = run(decode(frozen.plan), frozen.weights, [x])
        assert_near(actual, interpreted)
        meta = torch.ops.cnnfast.run_plan(
            [x.to("meta")], frozen.weights.to("meta"), frozen.plan.to("meta"), frozen.signature
        )[0]
        assert meta.shape == wanted.shape


@EACH
def test_plan_operation_keeps_nan_where_eager_does(name):
    model = made(name)
    x = torch.randn(2, 3, 14, 12)
    frozen = cnnfast.freeze(model, x, winograd=False, strict=True)
    for value in (float("nan"), float("inf")):
        x[1, :, 5, 6] = value
        wanted = truth(model, x)
        assert torch.equal(frozen(x)[0].isfinite(), wanted[0].isfinite())
        assert (frozen(x)[1].isfinite() <= wanted[1].isfinite()).all()


@EACH
def test_plan_operation_results_repeat_bit_for_bit(name):
    model, x = made(name), torch.randn(2, 3, 14, 12)
    frozen = cnnfast.freeze(model, x, strict=True)
    first = frozen(x)
    frozen(torch.full_like(x, float("nan")))
    assert torch.equal(frozen(x), first)


@EACH
def test_plan_operation_with_several_threads(name):
    """Enough work for a plan to wake threads; each step cuts its share by itself."""
    model, x = made(name), torch.randn(5, 3, 48, 40)
    frozen = cnnfast.freeze(model, x, strict=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = frozen(x)
        torch.set_num_threads(3)
        torch.testing.assert_close(frozen(x), alone, rtol=0, atol=1e-5 * alone.abs().max().item())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("seed", range(60))
def test_plan_of_woven_operations(seed):
    torch.manual_seed(seed)
    model, x = Woven(seed).eval(), torch.randn(2, 3, 14, 12)
    frozen = cnnfast.freeze(model, x, strict=True)
    assert_near(frozen(x), truth(model, x))
    larger = torch.randn(1, 3, 18, 40)
    assert_near(frozen(larger), truth(model, larger))
