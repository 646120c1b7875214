"""Runs interpreted_conv2d.py with TRITON_INTERPRET=1, which must be set before Triton is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parent / "interpreted_conv2d.py"


def test_conv2d_in_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed (Linux on x86-64 only)")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", str(CASES)]
    result = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    summary = result.stdout.strip().splitlines()[-1]
    assert re.search(r"\b\d+ passed\b", summary) and "skipped" not in summary, summary
