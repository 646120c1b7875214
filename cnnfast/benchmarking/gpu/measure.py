"""Contenders of a case, their difference from float64, their times."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .cases import Case, Work
from .timers import Timer

# Difference from float64 as a part of the largest value: rounding of operands and of long sums. Of a training
# step it is the norm's part, and where eager PyTorch in the same type is farther off, twice as far is
# allowed: rounding decides on which side of a ReLU's kink a value lies, and whole gradients with it.
TOLERANCE = {torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}
CONTENDERS = ("eager", "channels_last", "compile", "cudnn_fused", "cnnfast")


@dataclass(frozen=True)
class Row:
    """One contender of one case. status: "timed"; "missing", "wrong" or "failed" with a reason."""

    case: str
    kind: str
    dtype: str
    contender: str
    status: str
    reason: str = ""
    difference: float | None = None
    launched_ms: float | None = None
    graph_ms: float | None = None
    no_graph: str = ""
    operations: float = 0.0
    bytes: float = 0.0

    @property
    def best_ms(self) -> float | None:
        times = [time for time in (self.launched_ms, self.graph_ms) if time is not None]
        return min(times) if times else None

    @property
    def operations_per_s(self) -> float | None:
        return None if self.best_ms is None else 1e3 * self.operations / self.best_ms

    @property
    def bytes_per_s(self) -> float | None:
        return None if self.best_ms is None else 1e3 * self.bytes / self.best_ms

    def to_dict(self) -> dict:
        rates = {"operations_per_s": self.operations_per_s, "bytes_per_s": self.bytes_per_s}
        return asdict(self) | rates


def measure(
    cases: Sequence[Case],
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    timer: Timer,
    rounds: int,
    contenders: Sequence[str] = CONTENDERS,
) -> Iterator[Row]:
    """Rows in order, as they come. A contender that fails has a row that says so."""
    for case in cases:
        work = case.make(device)
        with torch.backends.cudnn.flags(benchmark=False):  # once: no search for the fastest way
            expected = work.call("reference", torch.float64)()
        for dtype in dtypes:
            allowed = _allowed(case, work, dtype, expected)
            for name in contenders:
                yield _row(case, work, name, dtype, expected, allowed, timer, rounds)


def _allowed(case: Case, work: Work, dtype: torch.dtype, expected: list[Tensor]) -> float:
    allowed = case.tolerance * TOLERANCE[dtype]
    if not work.training:
        return allowed
    try:
        eager = norm_of_difference(work.call("eager", dtype)(), expected)
    except Exception:  # eager's own row says why it cannot
        return allowed
    return max(allowed, 2 * eager)


def _row(
    case: Case,
    work: Work,
    name: str,
    dtype: torch.dtype,
    expected: list[Tensor],
    allowed: float,
    timer: Timer,
    rounds: int,
) -> Row:
    compare = norm_of_difference if work.training else largest_difference
    head = (case.name, case.kind, str(dtype).removeprefix("torch."), name)
    try:
        call = work.call(name, dtype)
        if call is None:
            return Row(*head, "missing", "cuDNN has no such fused operator")
        difference = compare(call(), expected)
        if not difference <= allowed:
            part = "norm" if work.training else "largest value"
            reason = f"differs from float64 by {difference:.1e} of the {part}, {allowed:.1e} allowed"
            return Row(*head, "wrong", reason, difference)
        time = timer(call, rounds)
    except Exception as error:  # whatever the contender raises is its row, and the others go on
        return Row(*head, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
    figures = {"operations": work.operations, "bytes": work.bytes(dtype.itemsize)}
    times = {"launched_ms": time.launched_ms, "graph_ms": time.graph_ms, "no_graph": time.no_graph}
    return Row(*head, "timed", difference=difference, **times, **figures)


def norm_of_difference(results: list[Tensor], expected: list[Tensor]) -> float:
    """The largest over all tensors, as a part of each one's norm; NaN where a result has one."""
    parts = [
        (result.double() - wanted).norm().item() / (wanted.norm().item() or 1.0)
        for result, wanted in zip(results, expected, strict=True)
    ]
    return math.nan if any(math.isnan(part) for part in parts) else max(parts, default=0.0)


def largest_difference(results: list[Tensor], expected: list[Tensor]) -> float:
    """Over all tensors, as a part of each one's largest value; NaN where a result has one."""
    worst = 0.0
    for result, wanted in zip(results, expected, strict=True):
        largest = wanted.abs().max().item() or 1.0
        difference = (result.double() - wanted).abs().max().item() / largest
        if difference != difference:
            return difference
        worst = max(worst, difference)
    return worst
