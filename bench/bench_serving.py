"""Serving: threads that share one loaded network, against ONNX Runtime and OpenVINO under the same load.

pytest-benchmark gets the median latency; throughput, p50 and p99 are in the table and in extra_info.
"""

import os

import harness
import pytest

from cnnfast.benchmarking import machine, serving

NETWORKS = ["lenet", "residual_net", "resnet18"]


def loads() -> list[serving.Load]:
    cores = machine.usable_cores()
    return [serving.Load(clients=cores, threads=1), serving.Load(clients=4 * cores, threads=1)]


@pytest.fixture(scope="module")
def rows(request):
    found = []
    yield found
    plugins = request.config.pluginmanager
    reporter, capture = (plugins.get_plugin(name) for name in ("terminalreporter", "capturemanager"))
    with capture.global_and_fixture_disabled():  # else it goes to the last test's captured output
        reporter.write_line(f"\n{serving.table(found)}\n{machine.cpu_name()}, {os.cpu_count()} cores")


@pytest.mark.parametrize("contender", serving.CONTENDERS)
@pytest.mark.parametrize("load", loads(), ids=lambda load: f"{load.clients}_clients")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.benchmark(timer=harness.clock)
def test_serving(network, load, contender, benchmark, rows):
    (row,) = serving.compare(network, load, [contender])
    rows.append(row)
    benchmark.group = f"serving {network}, {load.clients} clients"
    if row.status == "missing":
        pytest.skip(row.detail)
    if row.status != "ok":
        pytest.fail(f"{contender}: {row.detail}", pytrace=False)
    benchmark.extra_info.update(row.to_dict())
    benchmark.pedantic(harness.clock.advance, args=(row.p50_s,), rounds=1)
