"""The timing loop that runs inside a worker."""

import gc
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Round:
    """One round: `calls` calls took `seconds`."""

    seconds: float
    calls: int

    @property
    def seconds_per_call(self) -> float:
        return self.seconds / self.calls

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def time_round(
    step: Callable[[Any], Any],
    batches: Sequence[Any],
    min_time: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Round:
    """Calls `step` on the batches in turn until a round of at least `min_time` seconds is measured.

    The warm-up before it (a quarter of min_time, at least one call) fills caches that went cold while the
    process was stopped, and tells how many calls the round needs.
    """
    warm = _repeat(step, batches, 1, clock)
    while warm.seconds < min_time / 4:
        warm = _repeat(step, batches, _calls_for(min_time / 4, warm), clock)
    measured = _repeat(step, batches, _calls_for(min_time, warm), clock)
    while measured.seconds < min_time:
        measured = _repeat(step, batches, _calls_for(min_time, measured), clock)
    return measured


def _calls_for(seconds: float, seen: Round) -> int:
    """Calls that should last `seconds` with a little to spare; at least one more than seen when too short."""
    if seen.seconds <= 0:
        return seen.calls * 10
    wanted = math.ceil(1.1 * seconds / seen.seconds_per_call)
    return max(wanted, seen.calls + 1) if seen.seconds < seconds else wanted


def _repeat(step, batches: Sequence[Any], calls: int, clock: Callable[[], float]) -> Round:
    order = list(itertools.islice(itertools.cycle(batches), calls))
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = clock()
        for batch in order:
            step(batch)
        return Round(clock() - start, calls)
    finally:
        if collecting:
            gc.enable()
