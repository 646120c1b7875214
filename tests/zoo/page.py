"""docs/zoo.md from the records of `examine` and the times of `speed.measure`."""

import math

from .measure import LIMIT
from .speed import geometric_mean

GRADIENT_LIMIT = 1e-3
# Winograd's rounding errors over those of direct convolution: inception_v3 with smooth activations has 1.0e-4
# where eager PyTorch has 1.1e-5. With ReLU both grow, by units that are on in one and off in the other.
WINOGRAD = 10

_INTRODUCTION = """# Networks that were tried

`make zoo` writes this page. Weights are random, of He's scale, with batch-norm statistics of real batches;
images are noise, stripes and spots. Errors of values are the largest difference from eager PyTorch relative
to the spread over the three images (the mean over outputs of their range); gradients are those of the fused
network in evaluation mode, the largest relative difference (2-norm) of a parameter's gradient from eager's,
in brackets, where that is above 1e-3, what eager's own differs from float64's, and how far float64's itself
jumps when the images change by 1e-5 of their size: with every ReLU that this turns on or off. Coverage counts
layers and multiply-adds, those of matrix products in attention too, at the first size. Plans: how many the
frozen network calls; one and no eager layer means that it saves to a file.
"""


def problem(record: dict) -> str:
    """Why a record is not good; empty where it is."""
    if "failed" in record:
        return record["failed"]
    wrong = [kind for kind in ("frozen", "fused") if not record[f"{kind}_error"] <= LIMIT]
    gradient, eager = record["gradient_error"], record["eager_gradient_error"]
    explained = gradient <= WINOGRAD * eager or gradient <= record["gradient_jump"]
    if gradient > GRADIENT_LIMIT and not explained:
        wrong.append("gradient")
    return ", ".join(f"{kind} error" for kind in wrong)


def page(records: list[dict], times: list[dict]) -> str:
    lines = [_INTRODUCTION]
    for library in ("torchvision", "timm"):
        chosen = [record for record in records if record["name"].startswith(f"{library}/")]
        if chosen:
            lines += [f"## {library}", "", *_table(chosen), ""]
    if times:
        lines += _speed(times)
    return "\n".join(lines).rstrip() + "\n"


def _table(records: list[dict]) -> list[str]:
    header = (
        "network", "sizes", "spread", "frozen: layers", "multiply-adds", "plans", "error",
        "fused: layers", "multiply-adds", "error", "gradients", "",
    )  # fmt: skip
    rows = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return rows + [f"| {' | '.join(_cells(record))} |" for record in records]


def _cells(r: dict) -> list[str]:
    name = r["name"].split("/")[1]
    if "failed" in r:
        return [name, *[""] * 10, r["failed"].replace("|", "/")]
    gradient = _error(r["gradient_error"])
    if not math.isnan(r["eager_gradient_error"]):
        gradient += f" ({_error(r['eager_gradient_error'])}, {_error(r['gradient_jump'])})"
    return [
        name,
        ", ".join(map(str, r["sizes"])),
        f"{r['spread']:.2f}",
        *_coverage(r["frozen"]),
        str(r["plans"]),
        _error(r["frozen_error"]),
        *_coverage(r["fused"]),
        _error(r["fused_error"]),
        gradient,
        problem(r),
    ]


def _coverage(coverage: dict) -> tuple[str, str]:
    return f"{coverage['layers']:.0%}", f"{coverage['multiply_adds']:.1%}"


def _error(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0e}"


def _speed(times: list[dict]) -> list[str]:
    machine, settings = times[0]["machine"], times[0]["settings"]
    lines = [
        "## Speed",
        "",
        f"Milliseconds a call, float32, {settings.get('threads')} threads, {machine.get('cpu', 'unknown')}; "
        "each contender in a process of its own, medians of three rounds, 224x224 (inception_v3 299).",
        "",
        "| network | batch | eager channels_last | best of OpenVINO, ONNX Runtime | frozen | over eager "
        "| over peer |",
        "|---|---|---|---|---|---|---|",
    ]
    peers, eagers = [], []
    for row in (row for network in times for row in network["rows"]):
        eager, peer = _ratio(row["eager"], row["frozen"]), _ratio(row["peer"], row["frozen"])
        eagers += [eager] if eager else []
        peers += [peer] if peer else []
        lines.append(
            f"| {row['network']} | {row['batch']} | {_ms(row['eager'])} | {_ms(row['peer'])} "
            f"{row['peer_name'] or ''} | {_ms(row['frozen'])} | {_times(eager)} | {_times(peer)} |"
        )
    means = f"over eager {_times(geometric_mean(eagers))}, over the best peer {_times(geometric_mean(peers))}"
    return [*lines, "", f"Geometric means: {means}."]


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None or math.isnan(ratio) else f"{ratio:.2f}"
