"""pytest side of the benchmarks: groups are measured at once, pytest-benchmark gets the workers' times.

The method itself (a process per contender, the others stopped, rounds in turn, parity first) is
cnnfast.benchmarking.runner.
"""

from collections.abc import Sequence

import pytest

from cnnfast.benchmarking import ModelSpec, Result, Row, compare
from cnnfast.benchmarking.contenders import registry


class WorkerClock:
    """A pytest-benchmark timer that stands still except for the seconds that a worker measured."""

    __name__ = "worker_clock"

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds


clock = WorkerClock()

# Seconds for one answer of a worker: compiling a large network on few cores takes minutes.
PATIENCE = 1200.0


class Measurements:
    """Results of this session; a group of contenders is measured when its first test asks for it."""

    def __init__(self, rounds: int, min_time: float, threads: int | None):
        self._options = {
            "rounds": rounds,
            "min_time": min_time,
            "threads": threads,
            "timeout": PATIENCE,
        }
        self._groups: dict[tuple, Result] = {}

    def row(
        self, spec: ModelSpec, batch: int, mode: str, dtype: str, contenders: Sequence[str], contender: str
    ) -> Row:
        key = (spec.resolved().label, batch, mode, dtype)
        if key not in self._groups:
            self._groups[key] = compare(spec, [batch], contenders, mode=mode, dtype=dtype, **self._options)
        return self._groups[key].rows[list(contenders).index(contender)]

    def joined(self) -> Result | None:
        """All groups as one result."""
        results = list(self._groups.values())
        if not results:
            return None
        return Result(results[0].header, [row for result in results for row in result.rows])


def contenders(mode: str) -> list[str]:
    """Everything that a benchmark of a mode compares; those not installed are skipped with the reason."""
    return [kind.name for kind in registry(mode).values() if kind.default]


def selected(item: pytest.Item) -> list[str]:
    """Contenders of this test's group that the session runs (-k may have left some out)."""

    def group(other: pytest.Item) -> tuple:
        params = {name: value for name, value in other.callspec.params.items() if name != "contender"}
        return other.path, other.originalname, sorted((name, repr(value)) for name, value in params.items())

    mine = group(item)
    others = [other for other in item.session.items if "measure" in getattr(other, "fixturenames", ())]
    return [other.callspec.params["contender"] for other in others if group(other) == mine]


def record(benchmark, row: Row) -> None:
    """Hands a row's rounds to pytest-benchmark; skips a missing contender, fails a wrong or broken one."""
    benchmark.group = row.group
    if row.status == "missing":
        pytest.skip(row.detail)
    if row.status != "ok":
        pytest.fail(f"{row.contender}: {row.detail}", pytrace=False)
    benchmark.extra_info.update(row.to_dict())
    seconds = iter(row.rounds_s)
    benchmark.pedantic(clock.advance, setup=lambda: ((next(seconds),), {}), rounds=len(row.rounds_s))
