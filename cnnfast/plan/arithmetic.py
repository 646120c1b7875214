"""The choice between float32 and bfloat16, by time and by error."""

import statistics
import time

import torch
from torch import nn

from cnnfast.fuse.check import relative_error
from cnnfast.plan.record import copied, tensors_in

LARGEST_DIFFERENCE = (
    2e-2  # of bfloat16 from float32, as a share of the largest value, unless a budget says so
)
_SECONDS = 0.3  # for timing both
_ROUNDS = (3, 50)  # at least, at most


def faster_of(plain: nn.Module, half: nn.Module, inputs: tuple, error_budget: float | None) -> nn.Module:
    """`half` where it is faster on `inputs` and near enough to `plain`, else `plain`; the report says why.

    error_budget: largest difference allowed, as a share of the largest value of `plain`; None:
    LARGEST_DIFFERENCE. A difference that is NaN is too large.
    """
    budget = LARGEST_DIFFERENCE if error_budget is None else error_budget
    wanted, got = (tensors_in(network(*map(copied, inputs))) for network in (plain, half))
    difference = max((relative_error(a, b) for a, b in zip(got, wanted, strict=True)), default=0.0)
    times = _times((plain, half), inputs)
    near = difference <= budget
    chosen, word = (half, "bfloat16") if near and times[1] < times[0] else (plain, "float32")
    chosen.add_note(
        f"dtype: {word} by measurement on the example: float32 {times[0] * 1e3:.3f} ms, bfloat16 "
        f"{times[1] * 1e3:.3f} ms with {torch.get_num_threads()} threads; bfloat16 differs by "
        f"{difference:.1e} of the largest value, {'within' if near else 'beyond'} the budget of {budget:.1e}"
    )
    return chosen


def _times(networks: tuple[nn.Module, ...], inputs: tuple) -> list[float]:
    """Medians in seconds, the networks in turn."""
    seconds: list[list[float]] = [[] for _ in networks]
    start = time.perf_counter()
    least, most = _ROUNDS
    while len(seconds[0]) < least or (time.perf_counter() - start < _SECONDS and len(seconds[0]) < most):
        for network, measured in zip(networks, seconds, strict=True):
            given = tuple(map(copied, inputs))
            before = time.perf_counter()
            network(*given)
            measured.append(time.perf_counter() - before)
    return [statistics.median(measured) for measured in seconds]
