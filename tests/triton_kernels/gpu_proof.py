"""All that can be shown of the Triton kernels without a GPU; `pytest tests/triton_kernels/gpu_proof.py`.

Every sweep in the interpreter, every kernel x class of shapes x type x architecture through the compiler.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from interpreter import FILES, run_interpreted
from resources import check_report, compile_kernels

# Compiled kernels are kept here under the hash of their source, options and compiler.
CACHE = Path(__file__).resolve().parents[2] / "build" / "triton-proof"


@pytest.fixture(scope="module")
def sweeps() -> Iterator[dict[str, Future]]:
    """The sweeps of all files, each in its process, as many at a time as there are cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {name: pool.submit(run_interpreted, name, everything=True) for name in FILES}


@pytest.mark.parametrize("name", FILES)
def test_everything_in_the_interpreter(sweeps, name):
    sweeps[name].result()


def test_every_kernel_compiled(tmp_path):
    check_report(compile_kernels(tmp_path / "facts.json", True, CACHE, timeout=1500), everything=True)
