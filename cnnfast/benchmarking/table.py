"""The benchmark table on the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cnnfast.limits import Limits

from .result import Result, Row, baseline
from .surroundings import UNDISTURBED

_STYLES = {"parity": "red", "failed": "red", "missing": "dim"}


def build(result: Result) -> Group:
    return Group(Text(header_line(result.header)), _table(result), *_notes(result))


def header_line(header: dict) -> str:
    machine, settings = header["machine"], header["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    load = machine["load_average"]
    return (
        f"{machine['cpu']}, {settings['threads']} of {machine['cores']} cores"
        f" ({' '.join(machine['instruction_sets'][-6:])})\n"
        f"kernels of cnnfast: {machine['cnnfast_isa'] or 'not loaded'}; "
        f"{versions}; {settings['rounds']} rounds of at least {settings['min_time_s']:g} s"
        + (f"; load average at the start {load:.1f}" if load is not None else "")
        + f"\n{_limits_line(header['limits'])}"
    )


def _limits_line(limits: dict) -> str:
    if "missing" in limits:
        return f"limits of the machine not measured: {limits['missing']}"
    return f"measured limits of {Limits(**limits)}"


def _table(result: Result) -> Table:
    training = any(row.mode == "training" for row in result.rows)
    table = Table(title="milliseconds a call, each contender alone in its process", box=SIMPLE_HEAD)
    table.add_column("network", no_wrap=True)
    table.add_column("batch", justify="right")
    table.add_column("contender", no_wrap=True)
    titles = ("median", "min", "images/s", "speed-up", "% of peak", "difference")
    for title in (*titles, *(["peak MiB", "allocated MiB"] if training else [])):
        table.add_column(title, justify="right", no_wrap=True)
    for _, rows in result.groups():
        base = baseline(rows)
        for row in rows:
            mark = " (=1)" if row is base else ""
            network = f"{row.model} {row.mode}" if training else row.model
            cells = [network, str(row.batch), row.contender + mark, *_figures(result, row)]
            table.add_row(*cells, *(_memory(row) if training else []), style=_STYLES.get(row.status))
        table.add_section()
    return table


def _figures(result: Result, row: Row) -> list[str]:
    difference = f"{row.parity['error']:.1e}" if row.parity else ""
    if not row.timed:
        word = {"parity": "wrong", "failed": "failed", "missing": "-"}[row.status]
        return [word, "", "", "", "", difference]
    speedup, percent = result.speedup(row), result.percent_of_peak(row)
    return [
        f"{row.median_s * 1e3:.3f}",
        f"{row.min_s * 1e3:.3f}",
        f"{row.images_per_s:,.0f}",
        "" if speedup is None else f"{speedup:.2f}",
        "" if percent is None else f"{percent:.0f}",
        difference,
    ]


def _memory(row: Row) -> list[str]:
    """Peaks of resident memory and of tensors alive during a step."""
    sizes = (row.peak_rss_bytes, row.peak_allocated_bytes)
    return [f"{size / 2**20:.0f}" if row.timed and size else "" for size in sizes]


def _notes(result: Result) -> list[Text]:
    """Why some rows have no time, each reason once; how far cores were from one another."""
    notes = dict.fromkeys(f"{row.contender}: {row.detail}" for row in result.rows if row.status == "missing")
    broken = [row for row in result.rows if row.status in ("parity", "failed")]
    notes.update(dict.fromkeys(f"{row.group}, {row.contender}: {row.detail}" for row in broken))
    hand_overs = [1e9 * seconds for row in result.rows for seconds in row.hand_overs_s]
    if hand_overs:
        sampled = f"{_range(hand_overs)} ns, sampled before each round"
        notes[f"a cache line went from core to core in {sampled}"] = None
    disturbed = sum(result.disturbed_rounds(row) for row in result.rows)
    if disturbed:
        rounds = sum(len(row.rounds_s) for row in result.rows)
        notes[
            f"{disturbed} of {rounds} rounds ran while the cores computed less than {UNDISTURBED:.0%} of"
            " their best: something else had a part of them"
        ] = None
    missing = result.header.get("surroundings", {}).get("missing")
    if missing:
        notes[f"what the cores were worth was not measured: {missing}"] = None
    return [Text(note) for note in notes]


def _range(values: Sequence[float]) -> str:
    least, most = (f"{value:.0f}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"
