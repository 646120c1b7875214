"""The harness as a whole, on contenders that misbehave in one way each."""

import io
import json
import statistics

import pytest
from rich.console import Console

from cnnfast import _ext
from cnnfast.benchmarking import ModelSpec, compare, default_contenders, runner
from cnnfast.benchmarking.case import Case
from cnnfast.benchmarking.contenders import registry
from cnnfast.benchmarking.result import FORMAT, STATUSES, Result, Row
from cnnfast.benchmarking.surroundings import Sample, Surroundings
from cnnfast.limits import Limits

needs_extension = pytest.mark.skipif(not _ext.AVAILABLE, reason=f"needs compiled operators: {_ext.REASON}")
TINY = ModelSpec("fake_contenders:tiny", input_shape=(1, 4, 4), label="tiny")
CLASSES = [
    "Right",
    "Wrong",
    "Raises",
    "Dies",
    "DiesWhileTimed",
    "TurnsWrong",
    "NotANumber",
    "Missing",
    "Witness",
]


@pytest.fixture(scope="module")
def steps():
    return []


@pytest.fixture(scope="module")
def result(steps):
    names = [f"fake_contenders:{name}" for name in CLASSES]
    return compare(
        TINY,
        [2],
        names,
        rounds=5,
        threads=1,
        min_time=1e-3,
        patience=0.0,
        progress=lambda *step: steps.append(step),
    )


@pytest.fixture(scope="module")
def rows(result):
    return {row.contender: row for row in result.rows}


def test_right_contender_is_timed_in_all_rounds(rows):
    row = rows["right"]
    assert row.status == "ok", row.detail
    assert len(row.rounds_s) == len(row.calls) == 5
    assert all(seconds * calls >= 1e-3 for seconds, calls in zip(row.rounds_s, row.calls, strict=True))
    assert row.median_s == statistics.median(row.rounds_s)
    assert row.min_s == min(row.rounds_s)
    assert row.images_per_s == 2 / row.median_s
    assert row.parity["error"] <= row.parity["tolerance"]
    assert row.peak_rss_bytes > 10e6


def test_wrong_contender_is_reported_and_not_timed(rows):
    row = rows["wrong"]
    assert (row.status, row.rounds_s, row.median_s) == ("parity", [], None)
    assert "output differs by" in row.detail
    assert rows["not_a_number"].status == "parity"
    assert "nan" in rows["not_a_number"].detail


def test_contender_that_turns_wrong_while_timed_is_reported(rows):
    row = rows["turns_wrong"]
    assert row.status == "parity"
    assert row.detail.startswith("after the rounds: ")
    assert row.median_s is None


def test_failing_contender_is_reported_with_its_error(rows):
    assert rows["raises"].status == "failed"
    assert rows["raises"].detail == "RuntimeError: no such layer here"


def test_dead_contender_is_reported_with_its_last_words(rows):
    assert rows["dies"].status == "failed"
    assert "exit status 3" in rows["dies"].detail
    assert "last words" in rows["dies"].detail
    assert rows["dies_while_timed"].status == "failed"
    assert "measure: the process died (SIGKILL)" in rows["dies_while_timed"].detail
    assert rows["dies_while_timed"].median_s is None


def test_missing_contender_is_listed_with_the_remedy(rows):
    assert rows["missing"].status == "missing"
    assert rows["missing"].detail == "no_such_runtime not installed: pip install 'cnnfast[peers]'"


def test_others_are_stopped_while_one_runs(rows):
    assert rows["witness"].status == "ok", rows["witness"].detail


def test_rows_stand_in_the_order_asked_for(result):
    names = ["right", "wrong", "raises", "dies", "dies_while_timed", "turns_wrong", "not_a_number", "missing"]
    assert [row.contender for row in result.rows] == [*names, "witness"]


def test_progress_counts_to_its_total(steps):
    assert [done for done, _, _ in steps] == list(range(len(steps)))
    assert {total for _, total, _ in steps} == {len(steps)}


def test_json_is_strict_and_complete(result, tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    path = result.to_json(tmp_path / "folder" / "bench.json")
    data = json.loads(path.read_text(), parse_constant=refuse)
    assert data["format"] == FORMAT
    assert data["header"]["settings"] == {"threads": 1, "rounds": 5, "min_time_s": 1e-3}
    limits = data["header"]["limits"]
    assert limits == {"missing": limits.get("missing")} or limits["flops_per_s"] > 1e9
    machine = data["header"]["machine"]
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert {"python", "torch", "cnnfast"} <= set(machine["versions"])
    derived = {"median_s", "min_s", "images_per_s", "speedup", "percent_of_peak"}
    fields = set(Row.__dataclass_fields__) | derived
    assert all(set(row) == fields and row["status"] in STATUSES for row in data["rows"])
    assert [row["contender"] for row in data["rows"]] == [row.contender for row in result.rows]
    assert [path.name for path in path.parent.iterdir()] == ["bench.json"]


def test_table_shows_every_contender_and_every_reason(result, rows):
    console = Console(width=160, file=io.StringIO())
    console.print(result.table())
    text = console.file.getvalue()
    for row in result.rows:
        assert row.contender in text
    assert f"{rows['right'].median_s * 1e3:.3f}" in text
    assert "pip install 'cnnfast[peers]'" in text
    assert "no such layer here" in text
    assert result.header["machine"]["cpu"] in text


def test_plot_is_a_png(result, tmp_path):
    assert result.plot(tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def row(contender, *rounds, batch=1, status="ok"):
    return Row("net", batch, "inference", "float32", contender, "", status=status, rounds_s=list(rounds))


def test_speedup_is_over_channels_last_of_the_same_group():
    slow, base, fast = (
        row("eager", 8.0, 9.0, 7.0),
        row("eager_channels_last", 4.0),
        row("cnnfast_frozen", 1.0),
    )
    other = row("cnnfast_frozen", 1.0, batch=16)
    result = Result({}, [slow, base, fast, other])
    assert [result.speedup(each) for each in result.rows] == [0.5, 1.0, 4.0, None]
    assert [name for name, _ in result.groups()] == [
        "net batch 1 inference float32",
        "net batch 16 inference float32",
    ]


def test_flops_of_a_call_are_known_to_every_row(rows):
    assert {row.flops for row in rows.values()} == {2 * 2 * 16 * 10}  # a batch of 2 through Linear(16, 10)


def test_percent_of_peak_is_of_direct_convolution_over_the_median():
    fast, other, wrong = row("fast", 1.0, 2.0, 3.0), row("other", 2.0), row("wrong", 2.0, status="parity")
    fast.flops = wrong.flops = 100
    result = Result({"limits": {"flops_per_s": 200.0}}, [fast, other, wrong])
    assert [result.percent_of_peak(each) for each in result.rows] == [25.0, None, None]
    assert result.to_dict()["rows"][0]["percent_of_peak"] == 25.0
    assert Result({"limits": {"missing": "why"}}, [fast]).percent_of_peak(fast) is None


@needs_extension
def test_table_shows_limits_and_percentages(result, rows):
    console = Console(width=160, file=io.StringIO())
    console.print(result.table())
    text = console.file.getvalue()
    assert result.header["limits"]["threads"] == 1
    assert f"measured limits of {Limits(**result.header['limits'])}" in text
    line = next(line for line in text.splitlines() if " right " in line)
    assert f" {result.percent_of_peak(rows['right']):.0f} " in line and "% of peak" in text


@needs_extension
def test_distance_of_cores_is_sampled_before_each_round():
    result = compare(TINY, [1], ["fake_contenders:Right"], rounds=3, threads=2, min_time=1e-3)
    (row,) = result.rows
    assert len(row.hand_overs_s) == 3 and all(1e-9 < seconds < 1e-3 for seconds in row.hand_overs_s)
    row.hand_overs_s = [45e-9, 180e-9, 46e-9]
    console = Console(width=160, file=io.StringIO())
    console.print(result.table())
    assert "a cache line went from core to core in 45 to 180 ns" in console.file.getvalue()


@needs_extension
def test_cores_are_sampled_around_each_round():
    result = compare(TINY, [1], ["fake_contenders:Right"], rounds=2, threads=1, min_time=1e-3, patience=0.0)
    (row,) = result.rows
    best = result.header["surroundings"]["best_flops_per_s"]
    assert len(row.core_rates_flops_per_s) == 2
    assert all(1e8 < rate <= best for rate in row.core_rates_flops_per_s)
    row.core_rates_flops_per_s = [0.95 * best, 0.5 * best]
    assert result.disturbed_rounds(row) == 1
    console = Console(width=160, file=io.StringIO())
    console.print(result.table())
    assert "1 of 2 rounds ran while the cores computed less than 90% of their" in console.file.getvalue()


class FakeSurroundings(Surroundings):
    """Gives the rates of a list in turn, as Surroundings would."""

    def __init__(self, rates):
        self.rates = iter(rates)
        self.best_flops_per_s = max(rates)

    def sample(self):
        return Sample(next(self.rates), None)


@pytest.mark.parametrize(
    ("rates", "patience", "kept"),
    [
        ([10.0, 10.0], 60.0, 10.0),  # undisturbed at once
        ([5.0, 10.0, 10.0, 6.0, 9.5, 9.2], 60.0, 9.2),  # two attempts thrown away
        ([5.0, 10.0], 0.0, 5.0),  # no patience: kept as it is, and told
    ],
)
def test_disturbed_rounds_are_timed_anew(rates, patience, kept):
    lane = runner._Lane(
        Case(TINY, 1, "inference", "float32", 1, "."),
        "fake_contenders:Right",
        runner.Settings(1, 1e-3, 60.0, patience),
        1,
    )
    attempts = []
    lane._worker = object()
    lane._timed = lambda: attempts.append(1) or {"seconds": 1.0, "calls": 2, "peak_rss_bytes": None}
    surroundings = FakeSurroundings(rates)
    lane.round(surroundings)
    assert lane.row.core_rates_flops_per_s == [kept] and lane.row.rounds_s == [0.5]
    assert len(attempts) == len(rates) // 2 and next(surroundings.rates, None) is None


def test_limits_that_cannot_be_measured_are_missing_with_the_reason(monkeypatch):
    monkeypatch.setenv("CNNFAST_REFERENCE", "1")
    runner._limits.cache_clear()
    try:
        result = compare(TINY, [1], ["fake_contenders:Right"], rounds=1, threads=2, min_time=1e-3)
    finally:
        runner._limits.cache_clear()
    assert "CNNFAST_REFERENCE is set" in result.header["limits"]["missing"]
    assert result.rows[0].status == "ok" and result.percent_of_peak(result.rows[0]) is None
    console = Console(width=200, file=io.StringIO())
    console.print(result.table())
    assert "limits of the machine not measured" in console.file.getvalue()
    assert "what the cores were worth was not measured" in console.file.getvalue()
    assert "CNNFAST_REFERENCE is set" in result.header["surroundings"]["missing"]


def test_speedup_is_over_eager_where_channels_last_failed():
    result = Result(
        {}, [row("eager", 8.0), row("eager_channels_last", 1.0, status="parity"), row("fast", 2.0)]
    )
    assert [result.speedup(each) for each in result.rows] == [1.0, None, 4.0]


def test_training_step_with_a_wrong_gradient_is_reported():
    names = ["eager_channels_last", "fake_contenders:WrongGradient"]
    result = compare("lenet", [2], names, rounds=1, threads=1, mode="training", min_time=1e-3)
    right, wrong = result.rows
    assert right.status == "ok", right.detail
    assert right.peak_rss_bytes > 10e6
    assert right.peak_allocated_bytes > 2 * 6 * 28 * 28 * 4  # the first layer's output at least
    assert wrong.status == "parity"
    assert "gradient norm (relative) differs by 0.01" in wrong.detail


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"contenders": ["egger"]}, "'egger' for inference; known: eager, "),
        ({"rounds": 0}, "rounds is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"batches": [0]}, "batch is 0"),
        ({"mode": "guess"}, "mode is 'guess'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_bad_argument_is_named_before_any_process_starts(arguments, words, monkeypatch):
    monkeypatch.setattr("cnnfast.benchmarking.runner.Worker", None)
    with pytest.raises(ValueError, match=words):
        compare("lenet", **{"batches": [1], "contenders": [], **arguments})


def test_default_contenders_are_eager_and_cnnfast_and_with_peers_all():
    assert default_contenders() == ["eager", "eager_channels_last", "cnnfast_fused", "cnnfast_frozen"]
    trained = ["eager", "eager_channels_last", "cnnfast_fused"]
    assert default_contenders("training") == trained + [f"{name}_kept" for name in trained]
    assert {"openvino", "onnxruntime", "compile"} <= set(default_contenders(peers=True))


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_peer_that_is_not_installed_says_how_to_get_it(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    assert "not installed: pip install 'cnnfast[peers]'" in registry("inference")[name].unavailable()
