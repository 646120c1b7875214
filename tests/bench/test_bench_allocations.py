"""Counting what a step allocates."""

import torch

from cnnfast.benchmarking.allocations import peak_allocated

MEGA = 1 << 20


def test_peak_counts_what_lives_at_once():
    def call():
        for _ in range(3):  # one after the other
            torch.empty(MEGA, dtype=torch.uint8)
        together = [torch.empty(MEGA, dtype=torch.uint8) for _ in range(2)]
        del together

    assert 2 * MEGA <= peak_allocated(call) < 2.1 * MEGA


def test_peak_counts_what_stays():
    kept = []
    assert MEGA <= peak_allocated(lambda: kept.append(torch.empty(MEGA, dtype=torch.uint8))) < 1.1 * MEGA
