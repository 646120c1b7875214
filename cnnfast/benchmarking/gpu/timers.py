"""How long a call takes on a device."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

Call = Callable[[], object]
FLUSH_BYTES = 256 * 2**20  # more than any L2


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call; of the same call replayed from a CUDA graph, or why that was not measured."""

    launched_ms: float
    graph_ms: float | None
    no_graph: str = ""

    @property
    def best_ms(self) -> float:
        return self.launched_ms if self.graph_ms is None else min(self.launched_ms, self.graph_ms)


class Timer(Protocol):
    """Medians of `rounds` calls."""

    def __call__(self, call: Call, rounds: int) -> Timing: ...


class EventTimer:
    """Between two events of the current stream, caches flushed before each call; then from a graph."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flushed = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def __call__(self, call: Call, rounds: int) -> Timing:
        self._settle(call)
        launched = self._median(call, rounds)
        try:
            graph = self._captured(call)
        except RuntimeError as error:
            return Timing(launched, None, str(error).splitlines()[0])
        return Timing(launched, self._median(graph.replay, rounds))

    def _settle(self, call: Call) -> None:
        """Calls in a stream of their own: libraries choose algorithms, and graphs ask for it."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)

    def _captured(self, call: Call) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph

    def _median(self, call: Call, rounds: int) -> float:
        times = []
        for _ in range(rounds):
            self.flushed.zero_()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop))
        return statistics.median(times)


class ClockTimer:
    """The clock of the host, for devices without events."""

    def __call__(self, call: Call, rounds: int) -> Timing:
        call()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
        return Timing(statistics.median(times), None, "no CUDA device")
