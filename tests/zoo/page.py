"""docs/zoo.md from the records of `examine` and the times of `speed.measure`."""

import math

from .half import TIMES
from .measure import LARGEST, LIMIT, SMOOTH_LIMIT
from .speed import geometric_mean

_INTRODUCTION = """# Networks that were tried

`make zoo` writes this page. Weights are random, of He's scale, with batch-norm statistics of real batches;
images are noise, stripes and spots. Errors of values are the largest difference from eager PyTorch relative
to the spread over the three images (the mean over outputs of their range); those of eager autocast are in
brackets, and frozen networks in bfloat16 may have twice as much. Gradients are those of the fused
network in evaluation mode: the largest relative difference (2-norm) of a parameter's gradient from eager's.
Coverage counts layers and multiply-adds, those of matrix products in attention too, at the first size. Plans:
how many the frozen network calls; one and no eager layer means that it saves to a file.

Where gradients differ by more than 1e-3, three numbers stand in brackets: what eager's own differ from
float64's; how far float64's jump when the images change by 1e-5 of their size; and the difference,
fused from eager, in the network's smooth twin (SiLU for ReLU, average for max pooling and the like). A
gradient jumps with every ReLU that a rounding error turns on or off, by about the square root of the
share of units that flip: one of 2.4 million in resnet50 is 3e-3. With the decisions of the fused run
held, float64 agrees to 1e-5 (tests/zoo/test_decisions.py). So a difference above 1e-3 passes if that of
the smooth twin is no more than 1e-4, and if float64 itself, or eager, jumps by a third of it.
"""


def problem(record: dict) -> str:
    """Why a record is not good; empty where it is."""
    if "failed" in record:
        return record["failed"]
    wrong = [kind for kind in ("frozen", "fused") if not record[f"{kind}_error"] <= LIMIT]
    if not record["half_error"] <= TIMES * record["autocast_error"]:
        wrong.append("bfloat16")
    if record["parameters"] <= LARGEST and not (
        record["gradient_error"] <= LIMIT or _only_decisions_differ(record)
    ):
        wrong.append("gradient")
    return ", ".join(f"{kind} error" for kind in wrong)


def _only_decisions_differ(record: dict) -> bool:
    """Whether kernels are exact, and gradients jump as far under rounding errors without them."""
    jump = max(record["gradient_jump"], record["eager_gradient_error"])
    return record["smooth_gradient_error"] <= SMOOTH_LIMIT and record["gradient_error"] <= 3 * jump


def page(records: list[dict], times: list[dict]) -> str:
    lines = [_INTRODUCTION]
    for library in ("torchvision", "timm"):
        chosen = [record for record in records if record["name"].startswith(f"{library}/")]
        if chosen:
            lines += [f"## {library}", "", *_table(chosen), "", *_eager(chosen)]
    if times:
        lines += _speed(times)
    return "\n".join(lines).rstrip() + "\n"


def _table(records: list[dict]) -> list[str]:
    header = (
        "network", "sizes", "spread", "frozen: layers", "multiply-adds", "plans", "error", "bfloat16",
        "fused: layers", "multiply-adds", "error", "gradients", "",
    )  # fmt: skip
    rows = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return rows + [f"| {' | '.join(_cells(record))} |" for record in records]


def _eager(records: list[dict]) -> list[str]:
    """What stays eager in frozen networks, and why."""
    lines = []
    for record in records:
        reasons = record.get("eager", [])
        if reasons:
            lines += [f"* {record['name'].split('/')[1]}", *(f"  - {reason}" for reason in reasons)]
    return ["Eager between plans, by what weighs most:", "", *lines, ""] if lines else []


def _cells(r: dict) -> list[str]:
    name = r["name"].split("/")[1]
    if "failed" in r:
        return [name, *[""] * 11, r["failed"].replace("|", "/")]
    gradient = _error(r["gradient_error"])
    if not math.isnan(r["eager_gradient_error"]):
        others = ("eager_gradient_error", "gradient_jump", "smooth_gradient_error")
        gradient += f" ({', '.join(_error(r[key]) for key in others)})"
    return [
        name,
        ", ".join(map(str, r["sizes"])),
        f"{r['spread']:.2f}",
        *_coverage(r["frozen"]),
        str(r["plans"]),
        _error(r["frozen_error"]),
        f"{_error(r['half_error'])} ({_error(r['autocast_error'])})",
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
