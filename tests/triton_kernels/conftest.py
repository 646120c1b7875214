"""Memory that kernels write is NaN before they run, so that what they forget is seen."""

import pytest
import torch


@pytest.fixture(autouse=True)
def nan_in_new_memory():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).new_empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
