"""Frozen networks as modules."""

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnfast.fuse.shells import evaluating, own_copy, shell_copy, unfused
from cnnfast.limits import Limits
from cnnfast.plan import files, show
from cnnfast.plan.codec import decode, encode
from cnnfast.plan.nodes import Plan, Storage
from cnnfast.plan.profile import Profile, profile
from cnnfast.plan.record import tensors_in
from cnnfast.report import EAGER, Report, Row


def refuse_gradients(x: Tensor) -> None:
    """RuntimeError for an input that requires grad while gradients are recorded."""
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "a frozen network has no gradients, but its input requires grad: use cnnfast.fuse for "
            "training, or torch.no_grad() / input.detach()"
        )


class _Reported(nn.Module):
    """What every frozen network has: a report (self._report) and evaluation mode for good."""

    def changed(self, change: Callable[[Plan], Plan]) -> "_Reported":
        """The same network under plans made from its own."""
        raise NotImplementedError

    def with_conv_attributes(self, **attributes: int) -> "_Reported":
        """The same network with other attributes in every convolution."""
        return self.changed(lambda plan: plan.with_conv_attributes(**attributes))

    def in_bfloat16(self, results: torch.dtype = torch.float32) -> "_Reported":
        """The same network with bfloat16 values between the layers; results: dtype of what it gives."""
        kind = Storage.BFLOAT16 if results == torch.bfloat16 else Storage.FLOAT32
        return self.changed(lambda plan: replace(plan, values=Storage.BFLOAT16, results=kind))

    def report(self) -> Report:
        """Where each layer of the model went."""
        return self._report

    def add_note(self, note: str) -> None:
        """Add a line to the report."""
        self._report = self._report.with_notes(note)

    def repack(self) -> None:
        """Forget packed weights: needed after writes through `.data` only, which leave no trace."""
        torch.ops.cnnfast.clear_caches()

    def train(self, mode: bool = True) -> "_Reported":
        """Does nothing: a frozen network is always in evaluation mode."""
        return self


class _Planned(nn.Module):
    """A plan with its constants: two tensors, which stay float32 and int64 on the CPU."""

    def __init__(self, weights: Tensor, plan: Tensor, names: list[str]):
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("plan", plan)
        self.signature = torch.ops.cnnfast.plan_signature(weights, plan)  # shapes for torch.compile
        self._names = names
        self.training = False

    def _apply(self, fn: Any, recurse: bool = True) -> "_Planned":
        moved = fn(self.weights)
        if moved.dtype != torch.float32 or moved.device.type != "cpu":
            raise TypeError(
                f"a frozen network stays float32 on the CPU, it cannot become {moved.dtype} on "
                f"{moved.device}: "
                "freeze the model with dtype=torch.bfloat16, or use cnnfast.fuse"
            )
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        plan = decode(self.plan)
        head = f"{self.weights.numel():,} constants" + (", values in bfloat16" if plan.half else "")
        return "\n".join([head, *show.lines(plan, self._names)])

    def _changed_plan(self, change: Callable[[Plan], Plan]) -> Tensor:
        return encode(change(decode(self.plan)), self.weights)


class PlanCall(_Planned):
    """A plan inside a network that also has eager layers: takes and gives lists of float32 CPU tensors."""

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        if torch.jit.is_scripting():
            return torch.ops.cnnfast.run_plan(inputs, self.weights, self.plan, self.signature)
        return self._run(inputs)

    @torch.jit.unused
    def _run(self, inputs: list[Tensor]) -> list[Tensor]:
        own = self._buffers
        return torch.ops.cnnfast.run_plan(inputs, own["weights"], own["plan"], self.signature)

    def changed(self, change: Callable[[Plan], Plan]) -> "PlanCall":
        """The same layers and weights under a plan made from this one."""
        return PlanCall(self.weights, self._changed_plan(change), self._names)


class FrozenNet(_Reported, _Planned):
    """A network as two tensors, `weights` (float32) and `plan` (int64), which cnnfast::run_plan runs.

    forward takes one float32 CPU tensor and returns one; an input that requires grad is an error. It has
    no parameters and no training mode, and stays on the CPU in float32. It scripts, traces, compiles,
    exports, pickles and deep-copies, and threads may share it. Frozen in bfloat16 it takes bfloat16 as well,
    and returns float32, or bfloat16 where the model's own parameters were.
    """

    __jit_unused_properties__ = ("dtype",)  # torch.jit would compile it

    def __init__(self, weights: Tensor, plan: Tensor, names: list[str], report: Report):
        super().__init__(weights, plan, names)
        self._report = report

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

    def changed(self, change: Callable[[Plan], Plan]) -> "FrozenNet":
        """The same layers and weights under a plan made from this one."""
        return FrozenNet(self.weights, self._changed_plan(change), self._names, self._report)

    def with_plan(self, plan: Tensor) -> "FrozenNet":
        """The same layers and weights under another plan for them."""
        return FrozenNet(self.weights, plan, self._names, self._report)

    @property
    def dtype(self) -> torch.dtype:
        """Of the values between the layers: torch.float32 or torch.bfloat16."""
        return torch.bfloat16 if decode(self.plan).half else torch.float32

    def plan_inputs(self, inputs: tuple) -> list[tuple[Tensor, Tensor, list[torch.Size]]]:
        """For each plan its weights, its words, and the sizes that it meets with these inputs."""
        return [(self.weights, self.plan, [x.shape for x in inputs])]

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


class _WithPlans(_Reported):
    """A network that calls plans somewhere inside."""

    def plans(self) -> dict[str, PlanCall]:
        """The plans by the names of the modules that hold them."""
        return {name: part for name, part in self.named_modules() if isinstance(part, PlanCall)}

    def changed(self, change: Callable[[Plan], Plan]) -> "_WithPlans":
        """The same network under plans made from its own."""
        made = shell_copy(self)
        for name, part in self.plans().items():
            parent, _, child = name.rpartition(".")
            made.get_submodule(parent)._modules[child] = part.changed(change)
        return made

    def plan_inputs(self, inputs: tuple) -> list[tuple[Tensor, Tensor, list[torch.Size]]]:
        """For each plan its weights, its words, and the sizes that it meets with these inputs."""
        met: list[tuple[Tensor, Tensor, list[torch.Size]]] = []

        def note(part: PlanCall, args: tuple) -> None:
            met.append((part.weights, part.plan, [x.shape for x in args[0]]))

        probe = shell_copy(self)
        for part in probe.plans().values():
            part.register_forward_pre_hook(note)
        with torch.no_grad():
            probe(*inputs)
        return met


class JoinedNet(_WithPlans):
    """Plans joined by eager layers, which are copies in evaluation mode: forward is generated.

    It takes and gives what the model does. Inputs that require grad are an error. It scripts where its
    eager layers do; it traces, compiles, exports, pickles and deep-copies.
    """

    def __init__(self):
        super().__init__()
        self.training = False
        self._report = Report("freeze")

    def save(self, path: str | os.PathLike) -> Path:
        """Raises TypeError: a file holds one plan, and this network has eager layers or several results."""
        raise TypeError(
            "a file holds one plan from one tensor to one tensor, and this network has "
            f"{len(self.plans())} plans joined by eager layers (see report()): write it with "
            "cnnfast.export(frozen, path, example_inputs=x)"
        )


class EagerNet(_WithPlans):
    """An eager copy in evaluation mode, of which some children may be frozen networks.

    What freeze gives where a forward cannot be traced, and, with allow_eager=True, where there is no plan.
    """

    def __init__(self, model: nn.Module, report: Report):
        super().__init__()
        self.network = model
        self.training = False
        self._report = report

    def forward(self, *inputs: Any, **named: Any) -> Any:
        for x in tensors_in((inputs, named)):
            refuse_gradients(x)
        return self.network(*inputs, **named)

    def save(self, path: str | os.PathLike) -> Path:
        """Raises TypeError: a file holds one plan, and this network has eager layers."""
        raise TypeError(
            "this snapshot runs eager and has no plan to save: write it with "
            "cnnfast.export(frozen, path, example_inputs=x), or use torch.save on its state_dict"
        )


def eager_snapshot(model: nn.Module, reason: str) -> EagerNet:
    """What freeze(..., allow_eager=True) returns where it has no plan."""
    network = evaluating(own_copy(unfused(model))).requires_grad_(False)
    name = type(network).__name__
    row = Row("", name, EAGER, "an eager copy in evaluation mode", reason.splitlines()[0])
    return EagerNet(network, Report(f"freeze({name})", (row,), (reason,)))
