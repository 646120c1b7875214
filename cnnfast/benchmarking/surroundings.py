"""What the cores are worth at the moment, sampled before and behind each round from a process of its own.

Other programs take time, and a hypervisor may run two of a virtual machine's processors as two threads of one
core for seconds on end: whatever is timed then takes up to twice as long.
"""

from dataclasses import dataclass
from typing import Any

from .process import Worker, WorkerError

# Of the best rate seen: below it something else had a part of the cores.
UNDISTURBED = 0.9


@dataclass(frozen=True)
class Sample:
    """flops_per_s: float32 operations per second of all threads together, in registers.

    hand_over_s: seconds a cache line takes from one core to another; None for one thread.
    """

    flops_per_s: float
    hand_over_s: float | None


class Surroundings:
    """Samples for `threads` threads; its process is stopped between. Close it, or use it in `with`."""

    def __init__(self, threads: int, timeout: float, limits: dict[str, Any]):
        self._threads = threads
        self._timeout = timeout
        self._worker: Worker | None = Worker("surroundings", threads)
        self._worker.pause()
        self.best_flops_per_s: float = limits.get("flops_per_s", 0.0)
        self.missing = ""  # why they could not be sampled

    def sample(self) -> Sample | None:
        """None where that cannot be measured (then no more is tried)."""
        if self._worker is None:
            return None
        self._worker.resume()
        try:
            sample = Sample(**self._worker.ask("surroundings", self._timeout, threads=self._threads))
        except WorkerError as error:
            self.missing = str(error)
            self.close()
            return None
        self._worker.pause()
        self.best_flops_per_s = max(self.best_flops_per_s, sample.flops_per_s)
        return sample

    def undisturbed(self, *samples: Sample | None) -> bool:
        """Whether the cores had at least UNDISTURBED of their best in each; true where nothing is known."""
        least = UNDISTURBED * self.best_flops_per_s
        return all(sample is None or sample.flops_per_s >= least for sample in samples)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> "Surroundings":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
