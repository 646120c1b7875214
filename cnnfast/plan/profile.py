"""Time, arithmetic and memory traffic per node of a frozen network."""

import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnfast.limits import Limits, measure_limits
from cnnfast.plan.codec import decode
from cnnfast.plan.shapes import compulsory_bytes, infer, multiply_adds
from cnnfast.plan.show import describe
from cnnfast.report import plain_table, rich_table

_COLUMNS = ("node", "layers", "operation", "output", "ms", "share", "GFLOP/s", "% of peak", "MiB", "GB/s")


def profile(
    weights: Tensor, plan: Tensor, names: list[str], x: Tensor, repeats: int, limits: Limits | None = None
) -> "Profile":
    """Medians over `repeats` runs behind one that warms up; names: of the nodes."""
    if repeats < 1:
        raise ValueError(f"profile: repeats must be at least 1, not {repeats}")
    runs = [torch.ops.cnnfast.profile_plan([x], weights, plan)[1].tolist() for _ in range(repeats + 1)]
    nodes = decode(plan)
    shapes = infer(nodes, tuple(x.shape))
    rows = []
    for i, (node, shape) in enumerate(zip(nodes.nodes, shapes, strict=True)):
        seconds = statistics.median(run[i] for run in runs[1:])
        size = compulsory_bytes(node, [shapes[source] for source in node.inputs], shape)
        size = size // 2 if nodes.half else size
        rows.append(ProfileRow(names[i], describe(node), shape, seconds, multiply_adds(node, shape), size))
    return Profile(tuple(x.shape), tuple(rows), torch.get_num_threads(), limits)


@dataclass(frozen=True)
class ProfileRow:
    """One node: the layers it stands for, what it does, its output's shape, seconds, multiply-adds, bytes.

    bytes: what must move, in float32 or as values are stored, where the node runs alone: input, weights and
    output once each. A node that another one computes has no time of its own, and the other's time is that
    of both.
    """

    name: str
    operation: str
    shape: tuple[int, ...]
    seconds: float
    macs: int
    bytes: int

    @property
    def gflops(self) -> float:
        """Rate of arithmetic, a multiply-add being two operations."""
        return 2e-9 * self.macs / self.seconds if self.seconds > 0 else 0.0

    @property
    def gbytes(self) -> float:
        """Bytes per second, in 1e9."""
        return 1e-9 * self.bytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return 2 * self.macs / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Profile:
    """Time per node of a frozen network. str() is a plain table, which measures `limits` where needed.

    Operations are those of direct convolution, so that a Winograd convolution, which does fewer, may reach
    more than 100 % of the peak. The peak is that of all `threads`; the smallest networks run on one.
    """

    input_shape: tuple[int, ...]
    rows: tuple[ProfileRow, ...]
    threads: int
    given_limits: Limits | None = field(default=None, repr=False)

    @property
    def limits(self) -> Limits:
        """What the machine does at most: as given to `profile`, else measured, once per process."""
        return self.given_limits or measure_limits(self.threads)

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def gflops(self) -> float:
        """Rate of arithmetic of the whole network, a multiply-add being two operations."""
        return 2e-9 * self.macs / self.seconds if self.seconds > 0 else 0.0

    def percent_of_peak(self, row: ProfileRow | None = None) -> float:
        """The rate of arithmetic of one row, else of the whole network, as percent of the measured peak."""
        return 100e9 * (row or self).gflops / self.limits.flops_per_s

    def roofline(self, path: str | os.PathLike) -> Path:
        """Write a PNG of all layers with multiply-adds under the machine's roofs; gives its path.

        Log-log: operations per byte against GFLOP/s, a point per layer, as large as its share of the time,
        the slowest named. ImportError where matplotlib is not installed.
        """
        from cnnfast.plan.roofline import draw

        return draw(self, path)

    def __str__(self) -> str:
        return "\n".join((self._title(), *plain_table(*self._table()), f"limits of {self.limits}"))

    def to_rich(self) -> Any:
        """A rich.table.Table; ImportError where rich is not installed."""
        return rich_table(self._title(), *self._table(), caption=f"limits of {self.limits}")

    def _title(self) -> str:
        rates = f"{self.gflops:.1f} GFLOP/s, {self.percent_of_peak():.0f} % of the peak"
        return f"input {'×'.join(map(str, self.input_shape))}: {self.seconds * 1e3:.3f} ms, {rates}"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        cells = [
            [
                str(i),
                row.name,
                row.operation,
                "×".join(map(str, row.shape)),
                f"{row.seconds * 1e3:.4f}",
                f"{row.seconds / self.seconds:.1%}" if self.seconds else "",
                f"{row.gflops:.1f}" if row.gflops else "",
                f"{self.percent_of_peak(row):.0f}" if row.gflops else "",
                f"{row.bytes / 2**20:.3f}" if row.bytes else "",
                f"{row.gbytes:.1f}" if row.gbytes else "",
            ]
            for i, row in enumerate(self.rows)
        ]
        return list(_COLUMNS), cells
