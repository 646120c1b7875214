"""Collects bench_*.py and gives its tests the `measure` fixture."""

import sys

import harness
import pytest

from cnnfast.benchmarking import machine
from cnnfast.benchmarking.case import ModelSpec

_MEASUREMENTS = pytest.StashKey[harness.Measurements]()


def pytest_collect_file(file_path, parent):
    # Files named on the command line are collected by pytest whatever their names are.
    if file_path.match("bench_*.py") and not parent.session.isinitpath(file_path):
        return pytest.Module.from_parent(parent, path=file_path)


def pytest_collection_modifyitems(items):
    for item in items:
        if "measure" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=harness.clock))


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["cnnfast"] = machine.describe()


@pytest.fixture(scope="session")
def measurements(request):
    option = request.config.getoption
    results = harness.Measurements(option("bench_rounds"), option("bench_min_time"), option("bench_threads"))
    request.config.stash[_MEASUREMENTS] = results
    return results


@pytest.fixture
def measure(request, benchmark, measurements):
    """measure(spec, batch, mode, dtype): this contender beside the others of its group, into the record."""

    def run(spec: ModelSpec | str, batch: int, mode: str = "inference", dtype: str = "float32") -> None:
        spec = spec if isinstance(spec, ModelSpec) else ModelSpec(spec)
        contender = request.node.callspec.params["contender"]
        row = measurements.row(spec, batch, mode, dtype, harness.selected(request.node), contender)
        harness.record(benchmark, row)

    return run


def pytest_terminal_summary(terminalreporter, config):
    measurements = config.stash.get(_MEASUREMENTS, None)
    result = measurements.joined() if measurements else None
    if result is not None:
        from rich.console import Console

        terminalreporter.section("cnnfast benchmarks")
        console = Console(width=None if sys.stdout.isatty() else 140)
        with console.capture() as captured:
            console.print(result.table())
        terminalreporter.write(captured.get())
