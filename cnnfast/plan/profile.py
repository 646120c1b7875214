"""Time per node of a frozen network."""

import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnnfast.plan.codec import decode
from cnnfast.plan.shapes import infer, multiply_adds
from cnnfast.plan.show import describe
from cnnfast.report import plain_table, rich_table


def profile(weights: Tensor, plan: Tensor, names: list[str], x: Tensor, repeats: int) -> "Profile":
    """Medians over `repeats` runs behind one that warms up; names: of the nodes."""
    if repeats < 1:
        raise ValueError(f"profile: repeats must be at least 1, not {repeats}")
    runs = [torch.ops.cnnfast.profile_plan([x], weights, plan)[1].tolist() for _ in range(repeats + 1)]
    nodes = decode(plan)
    rows = []
    for i, (node, shape) in enumerate(zip(nodes.nodes, infer(nodes, tuple(x.shape)), strict=True)):
        seconds = statistics.median(run[i] for run in runs[1:])
        rows.append(ProfileRow(names[i], describe(node), shape, seconds, multiply_adds(node, shape)))
    return Profile(tuple(x.shape), tuple(rows))


@dataclass(frozen=True)
class ProfileRow:
    """One node: the layers it stands for, what it does, its output's shape, its time and multiply-adds."""

    name: str
    operation: str
    shape: tuple[int, ...]
    seconds: float
    macs: int

    @property
    def gflops(self) -> float:
        """Rate of arithmetic, a multiply-add being two operations."""
        return 2e-9 * self.macs / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Profile:
    """Time per node of a frozen network. str() is a plain table."""

    input_shape: tuple[int, ...]
    rows: tuple[ProfileRow, ...]

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    def __str__(self) -> str:
        return "\n".join((self._title(), *plain_table(*self._table())))

    def to_rich(self) -> Any:
        """A rich.table.Table; ImportError where rich is not installed."""
        return rich_table(self._title(), *self._table())

    def _title(self) -> str:
        return f"input {'×'.join(map(str, self.input_shape))}: {self.seconds * 1e3:.3f} ms"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        cells = [
            [
                str(i),
                row.name,
                row.operation,
                "×".join(map(str, row.shape)),
                f"{row.seconds * 1e3:.4f}",
                f"{row.seconds / self.seconds:.1%}" if self.seconds else "",
                f"{row.gflops:.1f}" if row.macs else "",
            ]
            for i, row in enumerate(self.rows)
        ]
        return ["node", "layers", "operation", "output", "ms", "share", "GFLOP/s"], cells
