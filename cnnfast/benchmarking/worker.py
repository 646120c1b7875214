"""The process that holds one contender: python -m cnnfast.benchmarking.worker REQUESTS REPLIES.

It reads one JSON request a line from file descriptor REQUESTS and answers each with one JSON line on REPLIES,
{"value": ...} or {"error": ...}. Requests: limits, surroundings, prepare, setup, check, allocated, measure,
finish. What libraries print goes to standard output.
"""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import torch

from cnnfast.limits import measure_cores, measure_hand_over, measure_limits

from . import parity
from .allocations import peak_allocated
from .case import Case
from .clock import time_round
from .contenders import find
from .fill import load_state_dict

_REQUESTS = ("limits", "surroundings", "prepare", "setup", "check", "allocated", "measure", "finish")


class Session:
    """One contender and its batches."""

    def __init__(self) -> None:
        self.case: Case
        self.contender: Any

    def prepare(self, case: dict) -> dict[str, Any]:
        return {"flops": parity.prepare(self._begin(case))}

    def limits(self, threads: int) -> dict[str, Any]:
        return measure_limits(threads).to_dict()

    def surroundings(self, threads: int) -> dict[str, Any]:
        return {"flops_per_s": measure_cores(threads), "hand_over_s": measure_hand_over(threads)}

    def setup(self, case: dict, contender: str) -> dict[str, Any]:
        case = self._begin(case)
        start = time.perf_counter()
        saved = load_state_dict(case.batches_file)
        model = case.spec.module()
        model.load_state_dict(load_state_dict(case.weights_file))
        self.reference = saved["reference"]
        self.autocast_error = saved.get("autocast_error", 0.0)
        kind = find(contender, case.mode)
        if case.mode == "training":
            parity.without_dropout(model)
            self.model = model.train()
            self.contender = kind(case, model, saved["inputs"][0])
            pairs = zip(saved["inputs"], saved["targets"], strict=True)
            self.batches = [self.contender.feed(inputs, target) for inputs, target in pairs]
        else:
            self.contender = kind(case, model.eval(), saved["inputs"][0])
            self.batches = [self.contender.feed(inputs) for inputs in saved["inputs"]]
        return {"setup_seconds": time.perf_counter() - start}

    def check(self) -> dict[str, Any]:
        with self.contender.context():
            return self._parity().to_dict()

    def _parity(self) -> parity.Parity:
        if self.case.mode == "inference":
            outputs = [self.contender.output(self.contender.step(fed)).clone() for fed in self.batches]
            return parity.compare_outputs(self.case, self.reference, outputs, self.autocast_error)
        loss = self.contender.backward(self.batches[0])
        norms = parity.gradient_norms(self.model)
        return parity.compare_training(self.reference, loss, norms, self.case.dtype)

    def allocated(self) -> dict[str, Any]:
        """Of the second step: gradients are there then, as in every later one."""
        with self.contender.context():
            self.contender.step(self.batches[0])
            return {"peak_allocated_bytes": peak_allocated(lambda: self.contender.step(self.batches[0]))}

    def measure(self, min_time: float) -> dict[str, Any]:
        counted = _reset_peak_memory()
        with self.contender.context():
            measured = time_round(self.contender.step, self.batches, min_time)
        return {**measured.to_dict(), "peak_rss_bytes": _peak_memory() if counted else None}

    def finish(self) -> dict[str, Any]:
        """A last look after all rounds: inference must still be right, training must not have diverged."""
        if self.case.mode == "inference":
            return self.check()
        loss = float(self.contender.step(self.batches[0]))
        finite = loss - loss == 0
        return parity.Parity("loss after the rounds", 0.0 if finite else loss, 0.0).to_dict()

    def _begin(self, case: dict) -> Case:
        self.case = Case.from_dict(case)
        torch.set_num_threads(self.case.threads)
        torch.manual_seed(0)
        return self.case


def _reset_peak_memory() -> bool:
    """Makes VmHWM count from here; False where the system refuses (then no peak is reported)."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _peak_memory() -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def serve(requests: TextIO, replies: TextIO, session: Any, names: Sequence[str]) -> None:
    """Answers requests, by the session's methods of these names, until the other end closes."""
    handlers: dict[str, Callable[..., dict[str, Any]]] = {name: getattr(session, name) for name in names}
    for line in requests:
        request = json.loads(line)
        try:
            reply = {"value": handlers[request.pop("request")](**request)}
        except Exception as error:  # whatever a contender raises belongs in the report
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def own_pipe(descriptor: str, mode: str) -> TextIO:
    """An inherited pipe end, not passed on: a child holding it would hide this process's death."""
    os.set_inheritable(int(descriptor), False)
    return os.fdopen(int(descriptor), mode, encoding="utf-8")


def die_with_parent() -> None:
    """A stopped worker cannot see that its parent is gone; the kernel can (Linux)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    serve(own_pipe(sys.argv[1], "r"), own_pipe(sys.argv[2], "w"), Session(), _REQUESTS)
