"""Memory that kernels write is NaN before they run, so that what they forget is seen; in the interpreter they
touch nothing but their arguments."""

import os

import pytest
import torch
from accesses import watch_accesses


@pytest.fixture(autouse=True)
def nan_in_new_memory():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).new_empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def nothing_outside_of_arguments(monkeypatch):
    if os.environ.get("TRITON_INTERPRET") == "1":
        watch_accesses(monkeypatch)
