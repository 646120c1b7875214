"""Frozen networks as modules."""

import copy
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnfast.fuse.shells import unfused
from cnnfast.limits import Limits
from cnnfast.plan import files, show
from cnnfast.plan.codec import decode
from cnnfast.plan.profile import Profile, profile
from cnnfast.report import EAGER, Report, Row

_NO_GRADIENT = (
    "a frozen network has no gradients, but its input requires grad: use cnnfast.fuse for training, or "
    "torch.no_grad() / input.detach()"
)


class FrozenNet(nn.Module):
    """A network as two tensors, `weights` (float32) and `plan` (int64), which cnnfast::run_plan runs.

    forward takes one float32 CPU tensor and returns one; an input that requires grad is an error. It has
    no parameters and no training mode, and stays on the CPU in float32. It scripts, traces, compiles,
    exports, pickles and deep-copies, and threads may share it.
    """

    def __init__(self, weights: Tensor, plan: Tensor, names: list[str], report: Report):
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("plan", plan)
        self.signature = torch.ops.cnnfast.plan_signature(weights, plan)  # shapes for torch.compile
        self._names = names
        self._report = report
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            outputs = torch.ops.cnnfast.run_plan([x], self.weights, self.plan, self.signature)
            if len(outputs) != 1:  # torch shows these lines of a file where it knows no cnnfast::run_plan
                raise RuntimeError("import cnnfast first")  # longer words would stand elsewhere
            return outputs[0]
        return self._run(x)

    @torch.jit.unused
    def _run(self, x: Tensor) -> Tensor:
        own = self._buffers  # attributes of nn.Module take microseconds, a tenth of the smallest networks
        return torch.ops.cnnfast.run_plan([x], own["weights"], own["plan"], self.signature)[0]

    def report(self) -> Report:
        """Where each layer of the model went."""
        return self._report

    def add_note(self, note: str) -> None:
        """Add a line to the report."""
        self._report = self._report.with_notes(note)

    def with_plan(self, plan: Tensor) -> "FrozenNet":
        """The same layers and weights under another plan for them."""
        return FrozenNet(self.weights, plan, self._names, self._report)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the network to a file for cnnfast.load; whole or not at all."""
        from cnnfast import __version__

        report = self._report
        network = {
            "title": report.title,
            "rows": [asdict(row) for row in report.rows],
            "notes": list(report.notes),
            "names": self._names,
        }
        return files.write(path, self.weights, self.plan, network, __version__)

    def profile(self, x: Tensor, repeats: int = 10, limits: Limits | None = None) -> Profile:
        """Time, arithmetic and bytes per node for an input, medians over `repeats` runs behind a first one.

        limits: what the machine does at most, for comparison; where None it is measured when the result is
        printed or drawn (see cnnfast.measure_limits).
        """
        return profile(self.weights, self.plan, self._names, x, repeats, limits)

    def train(self, mode: bool = True) -> "FrozenNet":
        """Does nothing: a frozen network is always in evaluation mode."""
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> "FrozenNet":
        moved = fn(self.weights)
        if moved.dtype != torch.float32 or moved.device.type != "cpu":
            raise TypeError(
                f"a frozen network stays float32 on the CPU, it cannot become {moved.dtype} on "
                f"{moved.device}: "
                "convert the model and freeze that, or use cnnfast.fuse"
            )
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return "\n".join([f"{self.weights.numel():,} constants", *show.lines(decode(self.plan), self._names)])


class EagerNet(nn.Module):
    """What freeze(..., allow_eager=True) returns where it has no plan: an eager copy in evaluation mode."""

    def __init__(self, model: nn.Module, reason: str):
        super().__init__()
        network = copy.deepcopy(unfused(model)).eval().requires_grad_(False)
        self.network = network
        self.training = False
        self._report = Report(
            f"freeze({type(network).__name__})",
            (
                Row(
                    "",
                    type(network).__name__,
                    EAGER,
                    "an eager copy in evaluation mode",
                    reason.splitlines()[0],
                ),
            ),
            (reason,),
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(_NO_GRADIENT)
        return self.network(x)

    def report(self) -> Report:
        """Why there is no plan."""
        return self._report

    def add_note(self, note: str) -> None:
        """Add a line to the report."""
        self._report = self._report.with_notes(note)

    def save(self, path: str | os.PathLike) -> Path:
        """Raises TypeError: there is no plan to write."""
        raise TypeError("this snapshot runs eager and has no plan to save: use torch.save on its state_dict")

    def train(self, mode: bool = True) -> "EagerNet":
        """Does nothing: a frozen network is always in evaluation mode."""
        return self
