"""Contenders of a case, their difference from float64, their times."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .cases import Case, Work
from .timers import Timer

# Largest difference from float64 as a part of the largest value: rounding of operands and of long sums.
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
        expected = work.call("reference", torch.float64)()
        for dtype in dtypes:
            for name in contenders:
                yield _row(case, work, name, dtype, expected, timer, rounds)


def _row(
    case: Case,
    work: Work,
    name: str,
    dtype: torch.dtype,
    expected: list[Tensor],
    timer: Timer,
    rounds: int,
) -> Row:
    head = (case.name, case.kind, str(dtype).removeprefix("torch."), name)
    try:
        call = work.call(name, dtype)
        if call is None:
            return Row(*head, "missing", "cuDNN has no such fused operator")
        difference = largest_difference(call(), expected)
        if not difference <= case.tolerance * TOLERANCE[dtype]:
            reason = f"differs from float64 by {difference:.1e} of the largest value"
            return Row(*head, "wrong", reason, difference)
        time = timer(call, rounds)
    except Exception as error:  # whatever the contender raises is its row, and the others go on
        return Row(*head, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
    figures = {"operations": work.operations, "bytes": work.bytes(dtype.itemsize)}
    times = {"launched_ms": time.launched_ms, "graph_ms": time.graph_ms, "no_graph": time.no_graph}
    return Row(*head, "timed", difference=difference, **times, **figures)


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
