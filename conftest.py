"""`pytest --benchmark` in the project's root: the same as `pytest bench`."""

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("cnnfast benchmarks")
    group.addoption("--benchmark", action="store_true", help="run the benchmarks (the same as: pytest bench)")
    group.addoption(
        "--bench-rounds", type=int, default=5, help="rounds of which the median is taken (default 5)"
    )
    group.addoption(
        "--bench-min-time", type=float, default=0.2, help="shortest round in seconds (default 0.2)"
    )
    group.addoption("--bench-threads", type=int, help="threads of each contender (default: all usable cores)")


def pytest_configure(config):
    if not config.getoption("benchmark"):
        return
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        raise pytest.UsageError(
            f"--benchmark runs bench/: leave out {' '.join(config.args)}, or leave out --benchmark"
        )
    config.args = [str(config.rootpath / "bench")]
