"""Runs an interpreted_*.py in a process where TRITON_INTERPRET=1 is set before Triton is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
FILES = sorted(path.name for path in FOLDER.glob("interpreted_*.py"))


def run_interpreted(name: str, everything: bool) -> None:
    """everything: also the sweeps that are marked gpu_proof."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        str(FOLDER / name),
    ]
    if not everything:
        command += ["-m", "not gpu_proof"]
    # Interpreted kernels run in one thread; a second one of torch's would only take another sweep's core.
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    summary = result.stdout.strip().splitlines()[-1]
    assert re.search(r"\b\d+ passed\b", summary) and "skipped" not in summary, summary
