"""Host programs of the kernels, each built once per test session and only when a test asks for it."""

import sys
from pathlib import Path

import pytest
from host_program import build, compiler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for ops.operators


@pytest.fixture(scope="session")
def host_programs(tmp_path_factory):
    """host_programs(name) builds tests/cuda/host/<name>.cpp, the first time."""
    if compiler() is None:
        pytest.skip("no C++ compiler (CXX, g++)")
    folder, built = tmp_path_factory.mktemp("cuda_host"), {}

    def program(name):
        if name not in built:
            built[name] = build(folder, name)
        return built[name]

    return program
