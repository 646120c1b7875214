"""Table, roofline plot and JSON of measurements on a GPU."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean

import torch

from cnnfast import __version__

from ..result import write_whole
from .measure import Row

COLUMNS = ("case", "dtype", "contender", "launched ms", "graph ms", "TFLOP/s", "GB/s", "times channels_last")


def header(device: torch.device) -> dict:
    """What the figures belong to."""
    facts = {"cnnfast": __version__, "torch": torch.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "processors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "cudnn.benchmark": torch.backends.cudnn.benchmark,
        }
    else:
        facts["device"] = str(device)
    return facts


def table(rows: Sequence[Row]) -> str:
    """GitHub's markdown, one line a row."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    base = {(row.case, row.kind, row.dtype): row for row in rows if row.contender == "channels_last"}
    for row in rows:
        name = f"{row.kind}: {row.case}"
        if row.status != "timed":
            lines.append(f"| {name} | {row.dtype} | {row.contender} | {row.status}: {row.reason} | | | | |")
            continue
        plain = base.get((row.case, row.kind, row.dtype))
        ratio = plain.best_ms / row.best_ms if plain is not None and plain.best_ms else None
        cells = [
            *(name, row.dtype, row.contender, _number(row.launched_ms), _number(row.graph_ms)),
            *(_number(row.operations_per_s, 1e12), _number(row.bytes_per_s, 1e9), _number(ratio)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, unit: float = 1.0) -> str:
    return "" if not value else f"{value / unit:.3g}"


def draw(rows: Sequence[Row], facts: dict, path: Path) -> None:
    """Operations per second over operations per byte, a colour a contender, under the best that was seen."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no window system

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    placed = [row for row in rows if row.status == "timed" and row.operations and row.bytes]
    for name in dict.fromkeys(row.contender for row in placed):
        ours = [row for row in placed if row.contender == name]
        x = [row.operations / row.bytes for row in ours]
        axes.scatter(x, [row.operations_per_s / 1e12 for row in ours], s=14, label=name)
    if placed:
        fastest = max(row.operations_per_s for row in placed)
        widest = max(row.bytes_per_s for row in placed)
        x = sorted(row.operations / row.bytes for row in placed)
        roof = [min(fastest, intensity * widest) / 1e12 for intensity in x]
        label = f"best seen: {fastest / 1e12:.3g} TFLOP/s, {widest / 1e9:.3g} GB/s"
        axes.plot(x, roof, color="grey", linewidth=0.8, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(fontsize=7)
    axes.set_xlabel("operations per compulsory byte")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(str(facts["device"]), fontsize=9)
    figure.savefig(path, dpi=130, format="png")


def ratios(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """By kind and dtype, a case's name with the best other contender's time over cnnfast's."""
    result: dict[tuple[str, str], dict[str, float]] = {}
    timed = [row for row in rows if row.status == "timed" and row.best_ms]
    for ours in timed:
        if ours.contender != "cnnfast":
            continue
        head = (ours.case, ours.kind, ours.dtype)
        others = [r.best_ms for r in timed if (r.case, r.kind, r.dtype) == head and r is not ours]
        if others:
            result.setdefault((ours.kind, ours.dtype), {})[ours.case] = min(others) / ours.best_ms
    return result


def summary(rows: Sequence[Row]) -> str:
    """A line for each kind and dtype: how many times faster than the best other contender."""
    lines = ["| what | dtype | cases | times the best other | least |", "|---|---|---|---|---|"]
    for (kind, dtype), cases in ratios(rows).items():
        mean, (name, least) = geometric_mean(cases.values()), min(cases.items(), key=lambda item: item[1])
        lines.append(f"| {kind} | {dtype} | {len(cases)} | {mean:.2f} | {least:.2f} ({name}) |")
    return "\n".join(lines) + "\n"


def write_figures(rows: Sequence[Row], facts: dict, folder: Path) -> list[Path]:
    """gpu.md and gpu.json in the folder, each as a whole."""
    head = ", ".join(f"{name} {value}" for name, value in facts.items())
    text = json.dumps({"header": facts, "rows": [row.to_dict() for row in rows]}, indent=1) + "\n"
    page = f"{head}\n\n{summary(rows)}\n{table(rows)}"
    return [
        write_whole(folder / "gpu.md", lambda path: path.write_text(page, "utf-8")),
        write_whole(folder / "gpu.json", lambda path: path.write_text(text, "utf-8")),
    ]


def write(rows: Sequence[Row], facts: dict, folder: Path) -> list[Path]:
    """write_figures, and gpu.png."""
    drawing = write_whole(folder / "gpu.png", lambda path: draw(rows, facts, path))
    return [*write_figures(rows, facts, folder), drawing]
