"""What a benchmark found: rows, a header about the machine, and how they are shown and saved."""

import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .surroundings import UNDISTURBED

FORMAT = "cnnfast-bench/1"
BASELINES = ("eager_channels_last", "eager")
STATUSES = ("ok", "parity", "failed", "missing")


@dataclass
class Row:
    """One contender on one case.

    status: "ok"; "parity" = wrong answers, not timed; "failed" = error, death or silence of its process;
    "missing" = cannot run here. `detail` says it in words. Times are seconds per call: rounds_s holds one per
    round, each the mean over as many calls as the round needed. `peak_rss_bytes`: peak of the timed part.
    `peak_allocated_bytes`: of a training step, tensors that lived at once (see allocations.py).
    `flops`: operations of one call by direct convolution (see parity.prepare).
    `hand_overs_s`: before each round, how long a cache line took from core to core (cnnfast.limits); empty
    where that is not known. `core_rates_flops_per_s`: for each round what the cores computed at most right
    before and behind it, the lower of both (surroundings.py); empty where that is not known.
    """

    model: str
    batch: int
    mode: str
    dtype: str
    contender: str
    setting: str
    status: str = "ok"
    detail: str = ""
    rounds_s: list[float] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    setup_s: float | None = None
    parity: dict[str, Any] | None = None
    peak_rss_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    flops: int | None = None
    hand_overs_s: list[float] = field(default_factory=list)
    core_rates_flops_per_s: list[float] = field(default_factory=list)

    @property
    def timed(self) -> bool:
        return self.status == "ok" and bool(self.rounds_s)

    @property
    def median_s(self) -> float | None:
        return statistics.median(self.rounds_s) if self.timed else None

    @property
    def min_s(self) -> float | None:
        return min(self.rounds_s) if self.timed else None

    @property
    def images_per_s(self) -> float | None:
        return self.batch / self.median_s if self.timed else None

    @property
    def group(self) -> str:
        return f"{self.model} batch {self.batch} {self.mode} {self.dtype}"

    def to_dict(self) -> dict[str, Any]:
        derived = {name: getattr(self, name) for name in ("median_s", "min_s", "images_per_s")}
        return {**asdict(self), **derived}


@dataclass
class Result:
    """Rows and header of one or several benchmarks (`extend` joins them)."""

    header: dict[str, Any]
    rows: list[Row]

    def extend(self, other: "Result") -> None:
        self.rows.extend(other.rows)

    def groups(self) -> Iterator[tuple[str, list[Row]]]:
        """Rows of the same network, batch, mode and dtype together, in order of appearance."""
        names = dict.fromkeys(row.group for row in self.rows)
        for name in names:
            yield name, [row for row in self.rows if row.group == name]

    def speedup(self, row: Row) -> float | None:
        """Times faster than the group's eager channels_last (else eager) by medians; None without both."""
        base = baseline([other for other in self.rows if other.group == row.group])
        return base.median_s / row.median_s if base is not None and row.timed else None

    def percent_of_peak(self, row: Row) -> float | None:
        """A row's rate of arithmetic, by its median, as percent of the measured peak.

        Operations are those of direct convolution, the peak that of cnnfast's instruction set: contenders
        that do fewer, or use a wider one, may have more than 100. None where either is unknown.
        """
        peak = self.header.get("limits", {}).get("flops_per_s")
        return 100 * row.flops / row.median_s / peak if peak and row.timed and row.flops else None

    def disturbed_rounds(self, row: Row) -> int:
        """Rounds of a row in which other programs, or another processor on one core, had a part of it."""
        best = self.header.get("surroundings", {}).get("best_flops_per_s", 0.0)
        return sum(rate < UNDISTURBED * best for rate in row.core_rates_flops_per_s)

    def table(self):
        """A rich table; print it with rich.console.Console or rich.print."""
        from .table import build

        return build(self)

    def plot(self, path: str | os.PathLike) -> Path:
        """Writes a PNG bar chart of the speed-ups; gives its path."""
        from .plot import draw

        return write_whole(path, lambda temporary: draw(self, temporary))

    def to_dict(self) -> dict[str, Any]:
        rows = [
            {**row.to_dict(), "speedup": self.speedup(row), "percent_of_peak": self.percent_of_peak(row)}
            for row in self.rows
        ]
        return {"format": FORMAT, "header": self.header, "rows": rows}

    def to_json(self, path: str | os.PathLike) -> Path:
        """Writes everything as JSON (numbers that JSON lacks become null); gives its path."""
        text = json.dumps(_finite(self.to_dict()), indent=2, allow_nan=False) + "\n"
        return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def baseline(rows: Sequence[Row]) -> Row | None:
    """The row that others are compared with: eager channels_last, else eager, if it was timed."""
    timed = {row.contender: row for row in rows if row.timed}
    return next((timed[name] for name in BASELINES if name in timed), None)


def write_whole(path: str | os.PathLike, write) -> Path:
    """Calls write(temporary path) and moves the file to its final name only when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        os.replace(temporary, path)
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
