"""Training keeps the memory that it frees."""

import platform
import subprocess
import sys

import pytest

_PAGES_ASKED_FOR = """
import resource, sys
import torch
from cnnfast.training.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def fill():
    torch.empty(16 << 20).fill_(1.0)  # 64 MB

for _ in range(3):  # until the heap is as large as it gets
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _pages(how: str) -> int:
    command = [sys.executable, "-c", _PAGES_ASKED_FOR, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_used_again():
    # A page of 4 KB is asked for at its first touch: 16384 of them a tensor, or 32 of 2 MB.
    # A system short of memory may take pages away meanwhile, so the least of a few runs counts.
    assert min(_pages("keep") for _ in range(3)) < 16
    assert _pages("plain") >= 4 * 32


def test_other_libraries_are_left_alone(monkeypatch):
    from cnnfast.training import allocator

    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("not to be opened"))
    assert allocator.keep_freed_memory() is False
