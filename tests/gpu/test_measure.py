"""The measurements of `make gpu`, as far as they go without a GPU: the host's clock in place of events."""

import json

import pytest
import torch

from cnnfast import _ext, ops
from cnnfast.benchmarking.gpu import __main__ as program
from cnnfast.benchmarking.gpu import cases, measure, report
from cnnfast.benchmarking.gpu.timers import ClockTimer

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not _ext.AVAILABLE, reason=f"the extension is not there: {_ext.REASON}")


def rows_of(chosen, contenders=("eager", "channels_last", "cudnn_fused", "cnnfast"), dtype=torch.float32):
    return list(measure.measure(chosen, CPU, [dtype], ClockTimer(), 2, contenders))


def test_every_operator_is_measured_and_right():
    chosen = cases.operator_cases(batch=2, scale=16)
    assert {case.kind for case in chosen} == set(ops.__all__)
    assert len({(case.kind, case.name) for case in chosen}) == len(chosen)
    rows = rows_of(chosen)
    assert len(rows) == 4 * len(chosen)
    for row in rows:
        if row.contender == "cudnn_fused":
            assert row.status in ("missing", "failed")  # there is no cuDNN for the CPU
        else:
            assert row.status == "timed" and row.best_ms > 0 and row.bytes > 0, row
            assert row.graph_ms is None and row.no_graph == "no CUDA device"


def test_networks_are_evaluated_and_trained():
    rows = rows_of(cases.network_cases(2, ("lenet", "residual_net")), ("channels_last", "cnnfast"))
    assert [row.status for row in rows] == ["timed"] * 8, rows
    assert {row.kind for row in rows} == {"inference", "training"}


def test_wrong_answers_and_failures_have_rows():
    x = torch.randn(2, 3, 4, 4)

    def fails(_):
        raise RuntimeError("no such kernel\nand more")

    for ours, status, reason in (
        (lambda y: y * 1.1, "wrong", "differs from float64"),
        (lambda y: y * torch.nan, "wrong", "differs from float64 by nan"),
        (fails, "failed", "RuntimeError: no such kernel"),
    ):
        work = cases.OperatorWork([x], torch.relu, ours)
        case = cases.Case("relu", "relu", lambda device, work=work: work)
        good, bad = rows_of([case], ("eager", "cnnfast"))
        assert good.status == "timed"
        assert bad.status == status and bad.reason.startswith(reason) and bad.best_ms is None


def test_report(tmp_path):
    rows = rows_of(cases.operator_cases(batch=2, scale=16)[:4])
    files = report.write(rows, report.header(CPU), tmp_path)
    table, data, image = (path.read_bytes() for path in files)
    assert image.startswith(b"\x89PNG") and len(image) > 10000
    loaded = json.loads(data)
    assert loaded["header"]["device"] == "cpu" and len(loaded["rows"]) == len(rows)
    lines = table.decode().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| case"))
    assert len(lines) == start + 2 + len(rows) and all(line.count("|") == 9 for line in lines[start:])
    assert "".join(f"{line}\n" for line in lines[2 : start - 1]) == report.summary(rows)


def test_ratios_are_of_the_best_other_contender():
    def row(contender, time, kind="conv2d", case="a"):
        return measure.Row(case, kind, "float16", contender, "timed", launched_ms=9.0, graph_ms=time)

    rows = [row("eager", 4.0), row("compile", 2.0), row("cnnfast", 1.0)]
    rows += [row("eager", 1.0, case="b"), row("cnnfast", 2.0, case="b"), row("cnnfast", 1.0, case="c")]
    rows += [row("eager", 3.0, "linear"), measure.Row("a", "linear", "float16", "cnnfast", "wrong", "why")]
    assert report.ratios(rows) == {("conv2d", "float16"): {"a": 2.0, "b": 0.5}}
    assert "| conv2d | float16 | 2 | 1.00 | 0.50 (b) |" in report.summary(rows)


def test_steps_are_compared_with_eager_by_their_norms():
    """One gradient that a rounded ReLU let through is no wrong answer; a factor is."""
    x, flipped = torch.randn(4, 3, 20, 20), torch.zeros(4, 3, 20, 20)
    flipped[0, 0, 0, 0] = 1.0

    def through(change):
        return lambda y: torch.relu(y) + change(y)

    for change, status in (
        (lambda y: y * flipped, "timed"),
        (lambda y: 0.2 * y, "wrong"),
        (lambda y: y * flipped * torch.nan, "wrong"),
    ):
        work = cases.OperatorWork([x], torch.relu, through(change), training=True)
        case = cases.Case("relu", "relu", lambda device, work=work: work, tolerance=8.0)
        (row,) = rows_of([case], ("cnnfast",))
        assert row.status == status, row


def test_eager_that_fails_has_a_row_and_others_go_on():
    def fails(_):
        raise RuntimeError("no such kernel")

    work = cases.OperatorWork([torch.randn(2, 3, 4, 4)], torch.relu, torch.relu, training=True)
    eager, work.plain = work.plain, lambda y: eager(y) if y.dtype == torch.float64 else fails(y)
    case = cases.Case("relu", "relu", lambda device: work)
    assert [row.status for row in rows_of([case], ("eager", "cnnfast"))] == ["failed", "timed"]


def test_unknown_contenders_are_refused(capsys, monkeypatch):
    monkeypatch.setattr(program, "why_not", lambda: "")
    for arguments in (["--contenders", "eager,fastest"], ["--dtypes", "float8"]):
        with pytest.raises(SystemExit):
            program.main(arguments)
        assert ": not of " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path, capsys):
    assert program.main(["--out", str(tmp_path)]) == 2
    assert "nothing was measured: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu_proof
def test_compiled_contender():
    chosen = [case for case in cases.operator_cases(batch=2, scale=16) if case.kind == "conv2d"][:1]
    (row,) = rows_of(chosen, ("compile",))
    assert row.status == "timed", row


@pytest.mark.gpu
def test_events_and_graphs():
    from cnnfast.benchmarking.gpu.timers import EventTimer

    device = torch.device("cuda", torch.cuda.current_device())
    chosen = cases.operator_cases(batch=2, scale=4)[:2]
    rows = list(measure.measure(chosen, device, [torch.float16], EventTimer(device), 3, ("cnnfast",)))
    assert all(row.status == "timed" and row.graph_ms > 0 for row in rows), rows
