"""Runs contenders against each other: right answers first, then rounds in turn, one running at a time."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from . import machine
from .case import Case, ModelSpec
from .contenders import find, registry
from .process import Worker, WorkerError
from .result import Result, Row
from .surroundings import Sample, Surroundings

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    rounds: int
    min_time_s: float
    timeout_s: float
    patience_s: float


def compare(
    model: str | ModelSpec,
    batches: Sequence[int] = (1, 16),
    contenders: Sequence[str] | None = None,
    rounds: int = 5,
    threads: int | None = None,
    mode: str = "inference",
    *,
    dtype: str = "float32",
    state_dict_path: str | None = None,
    min_time: float = 0.2,
    timeout: float = 300.0,
    patience: float = 5.0,
    progress: Progress | None = None,
) -> Result:
    """Times a network's contenders, each in a process of its own, the others stopped meanwhile.

    Args:
        model: name of a network of the notes, or a ModelSpec.
        batches: batch sizes, one group of rows each.
        contenders: names (`default_contenders(mode)` when None) or "package.module:Class".
        rounds: rounds of which the median is taken; each lasts at least `min_time` seconds.
        threads: threads of every contender; all usable cores when None.
        mode: "inference" or "training" (forward, cross entropy, backward, SGD step).
        dtype: precision of the contenders.
        state_dict_path: weights of a trained network under the plain network's keys (.safetensors or torch).
        patience: seconds for which a round is timed anew while the cores compute less than they can, because
            another program or, behind a hypervisor, another processor has a part of them. The attempt with
            the most of the cores counts.
        timeout: seconds that one request to a worker may take (building a contender is one).
        progress: called with (steps done, steps in all, what comes next).

    Returns a Result. A contender that answers wrongly, fails or is not installed has a row that says so.
    Raises ValueError for an unknown name or setting, RuntimeError when the reference cannot be computed.
    """
    spec = model if isinstance(model, ModelSpec) else ModelSpec(model)
    if state_dict_path is not None:
        spec = replace(spec, state_dict_path=state_dict_path)
    spec = spec.resolved()
    names = list(default_contenders(mode) if contenders is None else contenders)
    for name in names:
        find(name, mode)
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but must be at least 1")
    settings = Settings(rounds, min_time, timeout, patience)
    threads = machine.usable_cores() if threads is None else threads
    steps = _Steps(progress, 1 + len(batches) * (1 + len(names) * (rounds + 1)))
    with TemporaryDirectory(prefix="cnnfast-bench-") as folder:
        cases = [Case(spec, int(batch), mode, dtype, threads, folder) for batch in batches]
        steps.next("limits of the machine")
        result = Result(_header(settings, threads), [])
        with Surroundings(threads, timeout, result.header["limits"]) as surroundings:
            for case in cases:
                result.rows += _run_case(case, names, settings, steps, surroundings)
        result.header["surroundings"] = (
            {"missing": surroundings.missing}
            if surroundings.missing
            else {"best_flops_per_s": surroundings.best_flops_per_s}
        )
    return result


def default_contenders(mode: str = "inference", peers: bool = False) -> list[str]:
    """Names that run when none are given: eager PyTorch and cnnfast, with peers also every other runtime."""
    chosen = [kind for kind in registry(mode).values() if kind.default]
    if peers:
        return [kind.name for kind in chosen]
    return [kind.name for kind in chosen if kind.name.startswith(("eager", "cnnfast"))]


def _header(settings: Settings, threads: int) -> dict[str, Any]:
    return {
        "machine": machine.describe(),
        "limits": _limits(threads, settings.timeout_s),
        "settings": {"threads": threads, "rounds": settings.rounds, "min_time_s": settings.min_time_s},
    }


@functools.cache
def _limits(threads: int, timeout: float) -> dict[str, Any]:
    """Fields of cnnfast.Limits, measured in a process of its own, or {"missing": why they could not be}."""
    with Worker("limits", threads) as worker:
        try:
            return worker.ask("limits", timeout, threads=threads)
        except WorkerError as error:
            return {"missing": str(error)}


class _Steps:
    """Counts what is done for the progress callback."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress = progress
        self._total = total
        self._done = 0

    def next(self, text: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, text)
        self._done += 1


def _run_case(
    case: Case, names: Sequence[str], settings: Settings, steps: _Steps, surroundings: Surroundings
) -> list[Row]:
    steps.next(f"{case.title}: float64 reference")
    with Worker("reference", case.threads) as worker:
        flops = worker.ask("prepare", settings.timeout_s, case=case.to_dict())["flops"]
    with ExitStack() as workers:
        lanes = []
        for name in names:
            steps.next(f"{case.title}: set up {name}")
            lane = _Lane(case, name, settings, flops)
            workers.callback(lane.close)
            lane.start()
            lanes.append(lane)
        for number in range(settings.rounds):
            # Another one begins each round, so that none always follows the same neighbour.
            first = number % max(1, len(lanes))
            for lane in lanes[first:] + lanes[:first]:
                steps.next(f"{case.title}: round {number + 1}, {lane.row.contender}")
                lane.round(surroundings)
        for lane in lanes:
            lane.finish()
        return [lane.row for lane in lanes]


class _Timed(NamedTuple):
    """One attempt at a round: what the worker answered, and what the cores were worth before and behind."""

    reply: dict[str, Any]
    before: Sample | None
    behind: Sample | None

    @property
    def flops_per_s(self) -> float:
        """The lower rate of both samples; infinity where there are none."""
        return min((each.flops_per_s for each in (self.before, self.behind) if each), default=math.inf)


class _Lane:
    """One contender of a case: its row and, while it can run, its stopped worker."""

    def __init__(self, case: Case, name: str, settings: Settings, flops: int):
        kind = find(name, case.mode)
        self._case = case
        self._name = name
        self._settings = settings
        self._worker: Worker | None = None
        self.row = Row(case.spec.label, case.batch, case.mode, case.dtype, kind.name, kind.setting)
        self.row.flops = flops
        reason = kind.unavailable()
        if reason is not None:
            self._end("missing", reason)

    def start(self) -> None:
        """Builds the contender and checks its answers; leaves it stopped."""
        if self.row.status != "ok":
            return
        self._worker = Worker(self._name, self._case.threads)
        reply = self._ask("setup", case=self._case.to_dict(), contender=self._name)
        if reply is not None:
            self.row.setup_s = reply["setup_seconds"]
            self._check("check", "")
        if self._worker is not None and self._case.mode == "training":
            reply = self._ask("allocated")
            if reply is not None:
                self.row.peak_allocated_bytes = reply["peak_allocated_bytes"]
        if self._worker is not None:
            self._worker.pause()

    def round(self, surroundings: Surroundings) -> None:
        """One round of timing, running alone; anew, for `patience_s`, while something else has the cores."""
        give_up = time.monotonic() + self._settings.patience_s
        kept: _Timed | None = None
        while self._worker is not None:
            before = surroundings.sample()
            reply = self._timed()
            if reply is None:
                return
            timed = _Timed(reply, before, surroundings.sample())
            if kept is None or timed.flops_per_s > kept.flops_per_s:
                kept = timed
            if surroundings.undisturbed(timed.before, timed.behind) or time.monotonic() >= give_up:
                break
        if kept is not None:
            self._keep(kept)

    def _timed(self) -> dict[str, Any] | None:
        self._worker.resume()
        reply = self._ask("measure", min_time=self._settings.min_time_s)
        if reply is not None:
            self._worker.pause()
        return reply

    def _keep(self, timed: "_Timed") -> None:
        reply = timed.reply
        self.row.rounds_s.append(reply["seconds"] / reply["calls"])
        self.row.calls.append(reply["calls"])
        if timed.before is not None and timed.before.hand_over_s is not None:
            self.row.hand_overs_s.append(timed.before.hand_over_s)
        if timed.flops_per_s < math.inf:
            self.row.core_rates_flops_per_s.append(timed.flops_per_s)
        if reply["peak_rss_bytes"] is not None:
            self.row.peak_rss_bytes = max(self.row.peak_rss_bytes or 0, reply["peak_rss_bytes"])

    def finish(self) -> None:
        """Checks the answers again after all rounds, then ends the process."""
        if self._worker is None:
            return
        self._worker.resume()
        self._check("finish", "after the rounds: ")
        self.close()

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _check(self, request: str, when: str) -> None:
        reply = self._ask(request)
        if reply is None:
            return
        if self.row.parity is None or not reply["ok"]:
            self.row.parity = reply
        if not reply["ok"]:
            error, tolerance = reply["error"], reply["tolerance"]
            self._end("parity", f"{when}{reply['quantity']} differs by {error:.3g} (allowed {tolerance:.3g})")

    def _ask(self, request: str, **arguments: Any) -> dict[str, Any] | None:
        try:
            return self._worker.ask(request, self._settings.timeout_s, **arguments)
        except WorkerError as error:
            self._end("failed", str(error))
            return None

    def _end(self, status: str, detail: str) -> None:
        self.row.status = status
        self.row.detail = detail
        self.close()
