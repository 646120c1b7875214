"""Damaged files are errors or give the right answer; the process neither crashes nor hangs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import cnnfast

from .support import needs_extension

pytestmark = [
    needs_extension,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small network with most operations, as both kinds of file, and an example with its right answer."""
    torch.manual_seed(5)
    model = nn.Sequential(
        *(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.LocalResponseNorm(3),
        ),
        *(nn.Conv2d(4, 4, 1), nn.Sigmoid(), nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(16, 3)),
    )
    x = torch.randn(2, 1, 9, 9)
    frozen, folder = cnnfast.freeze(model.eval(), x), tmp_path_factory.mktemp("damage")
    frozen.save(folder / "net")
    frozen.in_bfloat16().save(folder / "net16")
    cnnfast.export(frozen, folder / "net.pt", verify=False)
    torch.save((x, frozen(x)), folder / "example")
    return folder


def outcome(kind, folder, file, count):
    script = Path(__file__).with_name("damage.py")
    command = [sys.executable, "-W", "ignore", str(script), kind, file, "example", str(count)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


def test_a_thousand_damaged_files(folder):
    """Bits flipped, cut off, spliced, fields and lengths changed."""
    counts = outcome("damaged", folder, "net", 1000)
    assert counts["errors"] > 950 and counts["other"] == 0


@pytest.mark.parametrize("file", ["net", "net16"])
def test_files_made_to_fit_their_checksums(folder, file):
    """They may describe another network, or none; they are read with the same care."""
    counts = outcome("made", folder, file, 300)
    assert counts["errors"] > 100 and sum(counts.values()) == 300


def test_damaged_torchscript_archives_never_run_a_wrong_plan(folder):
    """torch checks nothing in its archives; weights and plan carry checksums of their own."""
    counts = outcome("torchscript", folder, "net.pt", 200)
    assert counts["errors"] > 100 and counts["other"] == 0


def test_torchscript_archives_damaged_anywhere_are_errors_or_right(folder):
    """In torch's own records too: code, sizes of tensors, the archive's table of contents."""
    counts = outcome("archive", folder, "net.pt", 1000)
    assert counts["errors"] > 700 and counts["other"] == 0
