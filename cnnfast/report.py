"""What happened to every layer of a network, as data, as a plain table and as a rich one."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

FUSED = "fused"
ALREADY = "already fused"
EAGER = "eager"
DROPPED = "no work"

_COLUMNS = ("layer", "type", "status", "runs as", "why, and what would change it", "multiply-adds", "error")


@dataclass(frozen=True)
class Row:
    """One layer. macs: multiply-adds for the example inputs; error: relative to the layer's largest value."""

    name: str
    type: str
    status: str  # FUSED, ALREADY, EAGER or DROPPED
    runs_as: str = ""
    reason: str = ""
    macs: int | None = None
    error: float | None = None


@dataclass(frozen=True)
class Coverage:
    """Shares of the network that run on cnnfast's operators; multiply_adds is None without example inputs."""

    layers: float
    multiply_adds: float | None

    def __str__(self) -> str:
        text = f"{self.layers:.0%} of the layers"
        return (
            text if self.multiply_adds is None else f"{text}, {self.multiply_adds:.1%} of the multiply-adds"
        )


@dataclass(frozen=True)
class Report:
    """A row for each layer, and notes that hold for the whole network. str() is a plain table."""

    title: str
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def coverage(self) -> Coverage:
        working = [row for row in self.rows if row.status != DROPPED]
        served = [row for row in working if row.status in (FUSED, ALREADY)]
        total = sum(row.macs or 0 for row in working)
        known = any(row.macs is not None for row in self.rows)
        return Coverage(
            layers=len(served) / len(working) if working else 1.0,
            multiply_adds=(sum(row.macs or 0 for row in served) / total if total else 1.0) if known else None,
        )

    @property
    def left_out(self) -> tuple[Row, ...]:
        """The layers that run eager."""
        return tuple(row for row in self.rows if row.status == EAGER)

    def __getitem__(self, name: str) -> Row:
        """The row of one layer; KeyError where there is none of that name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def with_values(self, column: str, values: dict[str, Any]) -> "Report":
        """The same report with one column filled in by layer name."""
        rows = tuple(
            replace(row, **{column: values[row.name]}) if row.name in values else row for row in self.rows
        )
        return replace(self, rows=rows)

    def with_notes(self, *notes: str) -> "Report":
        return replace(self, notes=(*self.notes, *notes))

    def __str__(self) -> str:
        return "\n".join((f"{self.title}: {self.coverage}", *plain_table(*self._table()), *self.notes))

    def to_rich(self) -> Any:
        """A rich.table.Table; ImportError where rich is not installed."""
        return rich_table(f"{self.title}: {self.coverage}", *self._table(), caption="\n".join(self.notes))

    def __rich__(self) -> Any:
        return self.to_rich()

    def _table(self) -> tuple[list[str], list[list[str]]]:
        cells = [
            [
                row.name,
                row.type,
                row.status,
                row.runs_as,
                row.reason,
                "" if row.macs is None else f"{row.macs:,}",
                "" if row.error is None else f"{row.error:.1e}",
            ]
            for row in self.rows
        ]
        return drop_empty_columns(list(_COLUMNS), cells)


def drop_empty_columns(header: list[str], cells: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    kept = [i for i in range(len(header)) if any(row[i] for row in cells)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in cells]


def plain_table(header: list[str], cells: list[list[str]]) -> Iterable[str]:
    """Lines of a left-aligned table."""
    lines = [header, *cells]
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(len(header))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def rich_table(title: str, header: list[str], cells: list[list[str]], caption: str = "") -> Any:
    from rich.table import Table

    table = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table
