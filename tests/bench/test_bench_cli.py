"""python -m cnnfast bench, and pytest on top of the harness."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnnfast.benchmarking import cli

ROOT = Path(__file__).resolve().parents[2]


def run_pytest(*arguments):
    """As from a shell: pytest-benchmark measures nothing in a worker of pytest-xdist."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_cli_writes_table_json_and_png(tmp_path, capsys):
    outputs = ["--json", str(tmp_path / "b.json"), "--png", str(tmp_path / "b.png")]
    quick = ["--rounds", "1", "--min-time", "0.001", "--threads", "1"]
    status = cli.main(["--model", "lenet", "--batch", "1", "--contenders", "eager", *quick, *outputs])
    assert status == 0
    assert "lenet" in capsys.readouterr().out
    assert json.loads((tmp_path / "b.json").read_text())["rows"][0]["status"] == "ok"
    assert (tmp_path / "b.png").exists()


def test_cli_status_tells_of_a_wrong_contender(capsys):
    contenders = ["--contenders", "fake_contenders:Wrong"]
    assert cli.main(["--model", "lenet", "--batch", "1", "--rounds", "1", *contenders]) == 1
    assert "wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "lenett"], "no network named 'lenett'"),
        (["--contenders", "egger"], "no contender named 'egger'"),
        (["--state-dict", "x.pt"], "give one --model"),
        (["--model", "lenet", "--state-dict", "nowhere.pt"], "no file nowhere.pt"),
    ],
)
def test_cli_names_wrong_usage(arguments, words, capsys):
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_cli_list_tells_how_contenders_are_set_up(capsys):
    assert cli.main(["--list"]) == 0
    assert "INFERENCE_PRECISION_HINT f32" in capsys.readouterr().out


def test_pytest_records_the_times_of_the_workers(tmp_path):
    chosen = "test_operator and max_pool and eager and not 16"
    quick = ["--bench-rounds", "3", "--bench-min-time", "0.001"]
    output = ["--benchmark-json", str(tmp_path / "p.json")]
    done = run_pytest("bench/bench_operators.py", "-k", chosen, *quick, *output)
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads((tmp_path / "p.json").read_text())
    assert data["machine_info"]["cnnfast"]["cpu"]
    assert [b["extra_info"]["contender"] for b in data["benchmarks"]] == ["eager", "eager_channels_last"]
    for benchmark in data["benchmarks"]:
        assert benchmark["group"] == "max_pool 3/2 64x48x48 batch 1 inference float32"
        assert benchmark["stats"]["data"] == pytest.approx(benchmark["extra_info"]["rounds_s"])
        assert len(benchmark["stats"]["data"]) == 3
    assert "max_pool" in done.stdout


def test_pytest_benchmark_collects_what_pytest_bench_does():
    by_option, by_folder = (run_pytest("--collect-only", how) for how in ("--benchmark", "bench"))
    assert by_option.returncode == by_folder.returncode == 0
    tests = [[line for line in run.stdout.splitlines() if "::" in line] for run in (by_option, by_folder)]
    assert tests[0] == tests[1]
    assert len(tests[0]) == len(set(tests[0])) > 50


def test_pytest_benchmark_refuses_paths():
    done = run_pytest("--benchmark", "tests/test_golden.py")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--benchmark runs bench/" in done.stderr
