"""Contenders that misbehave in one way each, on a network that takes microseconds."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from cnnfast.benchmarking.contenders import Contender
from cnnfast.benchmarking.training import EagerTraining


def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 10))


def constant():
    """A network that hardly looks at its input."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    net.register_forward_hook(lambda module, inputs, output: 1.0 + 1e-6 * output)
    return net


class Right(Contender):
    name = "right"
    setting = "the network itself"

    def __init__(self, case, model, example):
        print("noise on standard output")
        self.step = model


class Wrong(Right):
    name = "wrong"

    def __init__(self, case, model, example):
        self.step = lambda batch: model(batch) * 1.001


class Raises(Right):
    name = "raises"

    def __init__(self, case, model, example):
        raise RuntimeError("no such layer here")


class Dies(Right):
    name = "dies"

    def __init__(self, case, model, example):
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)


class Missing(Right):
    name = "missing"
    requires = ("no_such_runtime",)


class _CountsCalls(Right):
    """Behaves for the four calls of the first parity check."""

    def __init__(self, case, model, example):
        self.calls = 0
        self.model = model
        self.step = self.count

    def count(self, batch):
        self.calls += 1
        return self.model(batch) if self.calls <= 4 else self.later(batch)


class DiesWhileTimed(_CountsCalls):
    name = "dies_while_timed"

    def later(self, batch):
        os.kill(os.getpid(), signal.SIGKILL)


class TurnsWrong(_CountsCalls):
    name = "turns_wrong"

    def later(self, batch):
        return self.model(batch) + 1.0


class NotANumber(Right):
    name = "not_a_number"

    def __init__(self, case, model, example):
        self.step = lambda batch: model(batch) * float("nan")


class Witness(Right):
    """Fails unless it meets other workers of its parent, each of them stopped while it runs."""

    name = "witness"

    def __init__(self, case, model, example):
        met = set()

        def step(batch):
            others = worker_states(os.getppid(), besides=os.getpid())
            met.update(others)
            if not met or not set(others.values()) <= {"T"}:
                raise RuntimeError(f"other workers and their states: {others}")
            return model(batch)

        self.step = step


class WrongGradient(EagerTraining):
    name = "wrong_gradient"

    def backward(self, fed):
        loss = super().backward(fed)
        with torch.no_grad():
            next(self.network.parameters()).grad.mul_(1.01)
        return loss


def worker_states(parent, besides=0):
    """Scheduler states of a process's worker children: R running, S sleeping, T stopped, Z ended."""
    states = {}
    for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in map(int, tasks.read_text().split()):
            command = Path(f"/proc/{pid}/cmdline").read_text()
            if pid != besides and "cnnfast.benchmarking.worker" in command:
                states[pid] = state(pid)
    return states


def state(pid):
    """One letter, or None where no such process exists."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()[0]
