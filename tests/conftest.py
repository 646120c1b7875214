"""What all tests share: the path to the golden data, a fixed seed, and a header that says what is tested."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

DATA = Path(__file__).resolve().parent / "data"
sys.path.insert(0, str(DATA))


def pytest_report_header(config):
    from cnnfast import _ext
    from cnnfast.benchmarking.machine import cpu_name

    if _ext.AVAILABLE:
        runs = f"extension, instruction set {_ext.active_isa()}"
    else:
        runs = f"reference operators ({_ext.REASON})"
    return [
        f"cnnfast: {runs}",
        f"torch {torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} threads, {cpu_name()}",
    ]


def pytest_collection_modifyitems(config, items):
    # Those who set TRITON_INTERPRET start files by name and choose by themselves.
    if "gpu_proof" not in config.getoption("markexpr") and not os.environ.get("TRITON_INTERPRET"):
        apart = [item for item in items if item.get_closest_marker("gpu_proof")]
        config.hook.pytest_deselected(items=apart)
        items[:] = [item for item in items if item not in apart]
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    """torch.compile counts recompilations of a function over all tests of a process, and stops at eight."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(scope="session")
def golden():
    """Reference answers per network; see tests/data/README.md."""
    return json.loads((DATA / "golden.json").read_text())
