"""What this machine computes and reads at most, by measurement: the yardstick of profiles and benchmarks."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cnnfast import _ext

MEMORY = "memory"
_SECONDS = 0.15  # of each measurement in registers and caches
_MEMORY_SECONDS = 0.3
_HAND_OVER_SECONDS = 0.005
_CORES_SECONDS = 0.005
_MEMORY_CAP = 1 << 30  # bytes, of all threads together
_UNKNOWN_CACHE = 64 << 20  # bytes taken for the last cache of a system that names none


@dataclass(frozen=True)
class Limits:
    """The best rates of `threads` threads together, with the kernels of one instruction set.

    flops_per_s: float32 operations per second; a fused multiply-add is two.
    read_bytes_per_s: bytes read per second from each place beyond the first cache, nearest first, under "L2",
    "L3" and "memory"; caches that the system does not name are left out.
    """

    threads: int
    isa: str
    flops_per_s: float
    read_bytes_per_s: dict[str, float]

    def attainable(self, intensity: float, place: str = MEMORY) -> float:
        """The roof over arithmetic of `intensity` operations per byte that is read from `place`, per second.

        Source: Williams, Waterman, Patterson, Roofline, CACM 52(4), 2009.
        """
        return min(self.flops_per_s, intensity * self.read_bytes_per_s[place])

    @property
    def team(self) -> str:
        """The threads in words."""
        return "1 thread" if self.threads == 1 else f"{self.threads} threads"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        places = ", ".join(f"{rate / 1e9:.0f} from {place}" for place, rate in self.read_bytes_per_s.items())
        return f"{self.team}, {self.isa}: {self.flops_per_s / 1e9:.0f} GFLOP/s; GB/s read: {places}"


def measure_limits(threads: int | None = None) -> Limits:
    """Measure what this machine's cores compute and read at most; takes about a second.

    Best of many short rounds of all threads: multiply-adds in registers with the kernels' instruction set,
    and sums over buffers that fit each cache or, four times as large as the last cache (1 GiB at most), only
    memory. Measured once per process and number of threads. What a core has for itself, arithmetic and its
    second-level cache, is the sum of the threads' best; of L3 and memory only rounds count in which all
    threads ran, so programs that run beside lower these.

    Args:
        threads: torch.get_num_threads() where None; torch's own setting is the same again afterwards.

    Raises:
        ValueError: threads below 1. RuntimeError: the compiled operators are not there.
    """
    return _measure(_checked("measure_limits", threads))


def measure_cores(threads: int | None = None) -> float:
    """float32 operations per second of all threads together at this moment; takes some milliseconds.

    Far below `Limits.flops_per_s` where other programs run, and where a hypervisor has put two processors of
    a virtual machine on the two threads of one core, so this is measured anew at every call.

    Args:
        threads: torch.get_num_threads() where None.

    Raises:
        ValueError: threads below 1. RuntimeError: the compiled operators are not there.
    """
    with torch_threads(_checked("measure_cores", threads)):
        return torch.ops.cnnfast.measure_arithmetic(_CORES_SECONDS)


def measure_hand_over(threads: int | None = None) -> float | None:
    """Seconds that a cache line takes from one core to another, between two threads; takes some milliseconds.

    Cores that share a cache hand over several times as fast as cores that do not, and what one thread reads
    of what another wrote costs accordingly. A hypervisor may move a virtual machine's cores between such
    groups while it runs, so this is measured anew at every call.

    Args:
        threads: torch.get_num_threads() where None.

    Returns:
        None for one thread, and where the system gives no second one.

    Raises:
        ValueError: threads below 1. RuntimeError: the compiled operators are not there.
    """
    threads = _checked("measure_hand_over", threads)
    if threads == 1:
        return None
    with torch_threads(threads):
        return torch.ops.cnnfast.measure_hand_over(_HAND_OVER_SECONDS) or None


def _checked(name: str, threads: int | None) -> int:
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"{name}: threads must be at least 1, not {threads}")
    if not _ext.AVAILABLE:
        raise RuntimeError(f"{name} needs the compiled operators: {_ext.REASON}")
    return threads


@functools.cache
def _measure(threads: int) -> Limits:
    with torch_threads(threads):
        flops = torch.ops.cnnfast.measure_arithmetic(_SECONDS)
        rates = {}
        for place, size in _buffers(threads).items():
            seconds = _MEMORY_SECONDS if place == MEMORY else _SECONDS
            rates[place] = torch.ops.cnnfast.measure_reading(size, seconds, place != "L2")
    return Limits(threads, _ext.active_isa(), flops, rates)


def _buffers(threads: int) -> dict[str, int]:
    """Bytes that each thread reads to find out about each place."""
    from cnnfast.benchmarking import machine  # which imports the whole package

    shares = machine.cache_shares(threads)
    buffers = {}
    if "L2" in shares:
        buffers["L2"] = shares["L2"] // 2
    if "L3" in shares:
        # Where threads have more second-level cache than third, half of the latter would fit the former.
        buffers["L3"] = max(shares["L3"] // 2, 3 * shares.get("L2", 0) // 2)
    last = max(shares.values(), default=_UNKNOWN_CACHE // threads)
    buffers[MEMORY] = min(4 * last, _MEMORY_CAP // threads)
    return buffers


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch.set_num_threads inside, the former number behind."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
