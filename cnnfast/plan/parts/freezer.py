"""Freezing a network part by part, module by module where a forward cannot be traced."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn

from cnnfast.fuse.check import multiply_adds, relative_error
from cnnfast.fuse.convert import nearest
from cnnfast.fuse.shells import evaluating, has_hooks, own_copy, shell_copy
from cnnfast.fuse.side_effects import left_alone
from cnnfast.fuse.tracing import NotTraceable, Trace, is_fixed, is_layer, trace
from cnnfast.plan.owners import is_leaf
from cnnfast.plan.parts.cut import cut
from cnnfast.plan.parts.joined import InRows, in_channels_last, join
from cnnfast.plan.parts.rows import eager_rows, join_paths, rows_of
from cnnfast.plan.parts.versions import read_latest
from cnnfast.plan.record import Record, by_position, copied, record, record_batch, tensors_in, with_tensors
from cnnfast.report import EAGER, Row

_LARGEST_ERROR = 1e-3  # where a forward that stays calls frozen children; a wrong one is far beyond
_NUMBERS = (int, float)
_NUDGE = 1e-5  # of a value's size: what Winograd's rounding errors add up to in deep networks


@dataclass
class Freezer:
    """Collects rows and notes for the report."""

    winograd: bool
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def freeze(self, module: nn.Module, path: str, args: tuple) -> nn.Module | None:
        """A module that stands for another in evaluation mode; None where it has no plan at all.

        args: what it is called with.
        """
        if has_hooks(module):
            return self._leave(module, path, args, "it has hooks: remove them first")
        try:
            traced = trace(module, is_leaf, live_training=False, args=args)
            made = record(traced.graph, module, args, _calls_of_modules(traced.graph, module))
            record_batch(traced.graph, module, args, made)
            runs_before = read_latest(traced.graph, module, made)
        except NotTraceable as error:
            return self._keep_forward(module, path, args, str(error))
        inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
        plain = {
            node: v for node, v in zip(inputs, args, strict=True) if is_fixed(v) or isinstance(v, _NUMBERS)
        }
        return self._join(module, path, traced, made, runs_before, plain)

    def _join(
        self, module, path: str, traced: Trace, made: Record, runs_before: dict, plain: dict
    ) -> nn.Module | None:
        graph = traced.graph
        result = cut(graph, module, made, traced.closed, runs_before, self.winograd)
        planned = {node for part in result.parts for node in part.part.nodes}
        replaced: dict[str, nn.Module] = {}
        inside = set()
        for node in graph.nodes:
            if node not in made.arguments or node in planned or node not in result.live:
                continue
            child = module.get_submodule(node.target)
            inside.add(node.target)
            if (
                frozen := self.freeze(child, join_paths(path, node.target), made.arguments[node])
            ) is not None:
                replaced[node.target] = frozen
        self.rows += rows_of(module, path, graph, made, result, inside)
        if not result.parts and not replaced:
            return None
        if traced.sizes is not None and traced.sizes.words:
            here = f"'{path}' ({type(module).__name__})" if path else type(module).__name__
            self.notes.append(f"{here} decides by sizes, and is frozen for those with {traced.sizes.words}.")
        return join(graph, module, made, result, replaced, traced.sizes, plain)

    def _leave(self, module: nn.Module, path: str, args: tuple, reason: str) -> None:
        self.rows += eager_rows(module, path, reason, multiply_adds(module, tuple(map(copied, args))))

    def _keep_forward(self, module: nn.Module, path: str, args: tuple, reason: str) -> nn.Module | None:
        """A copy whose forward stays and calls frozen children, as far as it works with them."""
        here = f"'{path}' ({type(module).__name__})" if path else type(module).__name__
        plain = evaluating(own_copy(module)).requires_grad_(False)
        calls = _Calls(plain)
        with left_alone(plain):
            wanted = plain(*map(copied, args))
        calls.stop()
        macs = multiply_adds(module, tuple(map(copied, args)))
        replaced, before, noted = {}, len(self.rows), len(self.notes)
        for name, child in calls.children.items():
            frozen = self._freeze_child(
                child,
                join_paths(path, name),
                calls.arguments.get(name),
                reason,
                {
                    key.removeprefix(f"{name}.") if key != name else "": count
                    for key, count in macs.items()
                    if key == name or key.startswith(f"{name}.")
                },
            )
            if frozen is not None:
                replaced[name] = frozen
        if not replaced:
            if not is_layer(module) and not calls.children:
                self.rows.append(Row(path, type(module).__name__, EAGER, reason=reason, macs=macs.get("", 0)))
            return None
        snapshot = _with_children(in_channels_last(own_copy(plain)), replaced)
        problem = _problem(snapshot, module, list(replaced), args, wanted)
        if problem:  # the forward may be one that calls x.view
            in_rows = {name: InRows(frozen) for name, frozen in replaced.items()}
            snapshot = _with_children(plain, in_rows)
            problem = _problem(snapshot, module, list(replaced), args, wanted)
        if problem:
            reason = f"{reason}; and it does not work with frozen children ({problem})"
            del self.rows[before:], self.notes[noted:]
            self.rows += eager_rows(module, path, reason, macs)
            return None
        self.notes.append(f"{here} keeps its own forward: {reason}. Its children were frozen one by one.")
        self.rows.insert(before, Row(path, type(module).__name__, EAGER, "its own forward", reason))
        return snapshot

    def _freeze_child(
        self, child: nn.Module, path: str, args: tuple | None, reason: str, macs: dict[str, int]
    ) -> nn.Module | None:
        works = not is_layer(child) or (isinstance(child, (nn.Conv2d, nn.Linear)) and is_leaf(child))
        if args is not None and works and not is_layer(child):
            return self.freeze(child, path, args)
        if args is not None and works:  # a layer is a network of one layer
            before = len(self.rows)
            frozen = self.freeze(nn.Sequential(child), path, args)
            self.rows[before:] = [replace(row, name=path) for row in self.rows[before:]]
            return frozen
        why = (
            f"called by a forward that stays: {reason}"
            if args is not None or is_layer(child)
            else ("it is not called, or with other arguments than tensors")
        )
        self.rows += eager_rows(child, path, why, macs)
        return None


def _calls_of_modules(graph: fx.Graph, module: nn.Module) -> list[fx.Node]:
    """Calls of modules that were not stepped into, once each."""
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and not is_layer(module.get_submodule(node.target)):
            calls.setdefault(node.target, []).append(node)
    return [nodes[0] for nodes in calls.values() if len(nodes) == 1]


class _Calls:
    """What the nearest children of a module are called with; `stop` ends the watch."""

    def __init__(self, module: nn.Module):
        self.children = dict(nearest(module, ""))
        self.arguments: dict[str, tuple] = {}
        self._odd: set[str] = set()
        self._handles = [
            child.register_forward_pre_hook(self._watch(name), with_kwargs=True)
            for name, child in self.children.items()
            if not has_hooks(child)
        ]

    def _watch(self, name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = by_position(module, args, kwargs)
            if given is None or not tensors_in(given):
                self._odd.add(name)
            self.arguments[name] = tuple(map(copied, given or ()))

        return hook

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        for name in self._odd:
            del self.arguments[name]


def _with_children(module: nn.Module, children: dict[str, nn.Module]) -> nn.Module:
    """The module with others in the place of some children."""
    for name, child in children.items():
        _put(module, name, child)
    return module


def _put(module: nn.Module, path: str, child: nn.Module) -> None:
    """In the place of a child, with the settings that a forward around it may ask for."""
    parent, _, name = path.rpartition(".")
    for key, value in module.get_submodule(path).__dict__.items():
        plain = isinstance(value, (bool, int, float, str, tuple)) and not key.startswith("_")
        if plain and not hasattr(child, key):
            setattr(child, key, value)
    module.get_submodule(parent)._modules[name] = child


def _problem(
    snapshot: nn.Module, module: nn.Module, children: list[str], args: tuple, wanted: object
) -> str | None:
    """Why a snapshot with frozen children does not give what the module gave.

    Forwards that sort, round or choose boxes jump where their children's results change a little: no more
    can be asked of frozen children than of eager ones that are nudged.
    """
    try:
        with left_alone(snapshot):
            got = snapshot(*map(copied, args))
    except Exception as error:  # whatever a forward raises that misses something in its children
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    error = _difference(got, wanted)
    if error <= _LARGEST_ERROR or error <= _difference(_nudged(module, children, args), wanted):
        return None
    return f"its results differ by {error:.1e}"


def _difference(got: object, wanted: object) -> float:
    got, wanted = tensors_in(got), tensors_in(wanted)
    if len(got) != len(wanted):
        return float("inf")
    return max((relative_error(a, b) for a, b in zip(got, wanted, strict=True)), default=0.0)


def _nudged(module: nn.Module, children: list[str], args: tuple) -> object:
    """The results of a module whose children's results are changed by _NUDGE of their size."""
    probe, generator = evaluating(shell_copy(module)), torch.Generator().manual_seed(0)

    def nudge(x: Tensor) -> Tensor:
        if not x.is_floating_point() or x.numel() == 0:
            return x
        return x + _NUDGE * x.abs().mean() * torch.randn(x.shape, generator=generator).to(x.dtype)

    for name in children:
        probe.get_submodule(name).register_forward_hook(lambda m, given, result: with_tensors(nudge, result))
    with left_alone(module):
        return probe(*map(copied, args))
