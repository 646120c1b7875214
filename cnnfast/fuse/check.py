"""Running a fused network beside the original: multiply-adds of the layers, and the error of each."""

import inspect
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from cnnfast.fuse.convert import Unit
from cnnfast.fuse.given import Call, seen_call
from cnnfast.fuse.interpret import Interpreter
from cnnfast.fuse.shells import evaluating, shell_copy, unfused
from cnnfast.fuse.side_effects import left_alone
from cnnfast.fuse.tracing import first_line, is_layer, is_ours

_ROUNDING = 1e-3  # a graph calls the very operators of its forward: where it is right there is hardly any
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class VerificationError(RuntimeError):
    """A fused layer gives other values than the original one."""


def as_tuple(example_inputs: Tensor | tuple) -> tuple:
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def multiply_adds(network: nn.Module, example_inputs: tuple) -> dict[str, int]:
    """Multiply-adds for these inputs, by the name of the innermost layer that does them.

    Those inside a layer of cnnfast.nn are its own; matrix products and convolutions that a forward calls as
    functions are those of its module.
    """
    probe = evaluating(unfused(network))
    counts = _Counts()
    ours: list[str] = []
    for name, layer in probe.named_modules():
        owner = next((path for path in ours if name.startswith(f"{path}." if path else "")), None)
        if owner is None:
            counts.watch(layer, name)
        if owner is not None or is_ours(layer):
            counts.by_shapes.add(name)
            if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
                counts.watch_held(layer, name if owner is None else owner)  # a block of ours calls such hooks
        if is_layer(layer) and is_ours(layer):
            ours.append(name)
    with torch.no_grad(), left_alone(network), counts.counter:
        probe(*example_inputs)
    return {name: count for name, count in counts.by_name.items() if count}


class _Counts:
    """Gives what the counter sees to the innermost module that is being called."""

    def __init__(self):
        from torch.utils.flop_counter import FlopCounterMode  # imports triton

        self.counter = FlopCounterMode(display=False)
        self.by_name: dict[str, int] = {}
        self.by_shapes: set[str] = set()  # modules that call our own operators
        self._calls: list[str] = []
        self._seen = 0

    def watch(self, module: nn.Module, name: str) -> None:
        """Scripted modules take no hooks: their work counts as that of the module around them."""
        if isinstance(module, torch.jit.ScriptModule):
            return
        module.register_forward_pre_hook(lambda module, args: self._enter(name))
        module.register_forward_hook(lambda module, args, output: self._leave())

    def watch_held(self, layer: nn.Module, name: str) -> None:
        """By shapes, where our own operators do the work."""
        seen = self.by_name

        def hook(layer: nn.Module, args: tuple, output: Tensor) -> None:
            self._settle()
            seen[name] = seen.get(name, 0) + output.numel() * layer.weight[0].numel()

        layer.register_forward_hook(hook)

    def _enter(self, name: str) -> None:
        self._settle()
        self._calls.append(name)

    def _leave(self) -> None:
        self._settle()
        self._calls.pop()

    def _settle(self) -> None:
        total = self.counter.get_total_flops() // 2
        name = self._calls[-1] if self._calls else None
        if name is not None and name not in self.by_shapes:
            self.by_name[name] = self.by_name.get(name, 0) + total - self._seen
        self._seen = total


def wrong_units(
    fused: nn.Module, units: Iterable[Unit], example_inputs: tuple
) -> tuple[dict[str, str], list[str]]:
    """By path, why a unit's graph is not that of its forward: it does not run, or gives other values.

    A forward may ask for more than tracing can answer, such as whether a value is None. Beside it notes about
    paths of training that refuse the example, such as batch statistics of one value: those are unchecked.
    """
    eager = evaluating(unfused(fused))
    calls = _arguments(eager, [unit.path for unit in units], example_inputs)
    wrong, notes = {}, []
    for unit in units:
        args = _taken(unit, calls)
        if args is None or unit.traced is None:
            continue
        module, call = eager.get_submodule(unit.path), calls[unit.path]
        if unit.training:
            module.train()
        try:
            wanted = _run(eager, module, call.args, call.kwargs)
        except Exception as error:
            if not unit.training:
                raise
            what = f"'{unit.path}'" if unit.path else type(module).__name__
            why = f"{type(error).__name__}: {first_line(error)}"
            notes.append(f"{what}: its path of training was not checked, which refuses the example ({why})")
        else:
            why = _why_wrong(eager, module, unit.traced, args, wanted)
            if why is not None:
                wrong[unit.path] = why
        evaluating(module)
    return wrong, notes


def _taken(unit: Unit, calls: dict[str, inspect.BoundArguments]) -> tuple | None:
    """What a unit's graphs take in a call; None where there was none, or one of another kind."""
    call = calls.get(unit.path)
    if call is None or unit.given is None:
        return None if call is None else call.args
    return unit.given.values(call)


def _run(eager: nn.Module, runner: Callable, args: tuple, kwargs: dict | None = None) -> object:
    with torch.no_grad(), left_alone(eager):
        return runner(*copies(args), **copies(kwargs or {}))


def _why_wrong(
    eager: nn.Module, module: nn.Module, graph: fx.Graph, args: tuple, wanted: object
) -> str | None:
    """What a module's graph does other than its forward, which gave `wanted` in the module's present mode."""
    try:
        got = _run(eager, Interpreter(module, graph=graph).run, args)
    except Exception as error:  # whatever a graph raises that took a wrong path
        return f"its graph does not run ({type(error).__name__}: {first_line(error)})"
    return None if same_values(got, wanted) else "its graph gives other values than its forward"


def copies(args: tuple | dict) -> tuple | dict:
    """With tensors of their own, which a forward may write into."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, args)


def same_values(got: object, wanted: object) -> bool:
    """Whether two results are of equal shapes and dtypes, and nearly equal values."""
    found, right = ([leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)] for x in (got, wanted))
    if [(x.shape, x.dtype) for x in found] != [(x.shape, x.dtype) for x in right]:
        return False
    return all(
        relative_error(a, b) <= _ROUNDING for a, b in zip(found, right, strict=True) if not a.is_sparse
    )


def layer_errors(fused: nn.Module, units: Iterable[Unit], example_inputs: tuple) -> dict[str, float]:
    """Largest difference of each layer's output relative to its largest value, both in evaluation mode.

    Each unit starts from the original's values; within it errors accumulate as they do in use.
    """
    eager, probe = evaluating(unfused(fused)), evaluating(shell_copy(fused))
    calls = _arguments(eager, [unit.path for unit in units], example_inputs)
    errors = {}
    for unit in units:
        args = _taken(unit, calls)
        if args is None or unit.training:
            continue  # what evaluation mode does not take
        wanted, got = (
            _Recorder(module.get_submodule(unit.path), graph, {names[i] for names in unit.values.values()})
            for i, (module, graph) in enumerate(((eager, unit.eager), (probe, unit.fused)))
        )
        for recorder in (wanted, got):  # which share their buffers
            with torch.no_grad(), left_alone(fused):
                recorder.run(*args)
        for layer, (before, after) in unit.values.items():
            if before in wanted.values and after in got.values:
                error = relative_error(got.values[after], wanted.values[before])
                errors[layer] = max(error, errors.get(layer, 0.0))
    return errors


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value; infinite where shapes or non-finite values differ."""
    if got.shape != wanted.shape:
        return float("inf")
    got, wanted = got.double(), wanted.double()
    if not torch.equal(got.isfinite(), wanted.isfinite()):
        return float("inf")
    finite = wanted.isfinite()
    if not finite.any():
        return 0.0
    scale = wanted[finite].abs().max().item()
    difference = (got[finite] - wanted[finite]).abs().max().item()
    return difference / scale if scale > 0 else difference


def check_errors(errors: dict[str, float], dtype: torch.dtype) -> None:
    """Raises VerificationError naming the layers whose error is above the tolerance for the dtype."""
    limit = TOLERANCE[dtype]
    wrong = [f"{name} ({error:.1e})" for name, error in errors.items() if not error <= limit]
    if wrong:
        raise VerificationError(
            f"fused layers differ from the original by more than {limit:.0e} of their largest value: "
            + ", ".join(wrong)
        )


def _arguments(
    eager: nn.Module, paths: Iterable[str], example_inputs: tuple
) -> dict[str, inspect.BoundArguments]:
    """What each unit is called with, the last time if more than once."""
    calls: dict[str, inspect.BoundArguments] = {}
    for path in paths:

        def hook(module: nn.Module, args: tuple, kwargs: dict, path: str = path) -> None:
            calls[path] = inspect.signature(module.forward).bind(*args, **kwargs)

        eager.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad(), left_alone(eager):
        eager(*example_inputs)
    return calls


def calls_of(model: nn.Module, example_inputs: tuple) -> dict[str, Call]:
    """By path, what the modules that are no layers are called with in evaluation mode."""
    eager = evaluating(unfused(model))
    paths = [
        path
        for path, module in eager.named_modules()
        if not isinstance(module, torch.jit.ScriptModule) and not is_layer(module)
    ]
    found = {path: seen_call(call) for path, call in _arguments(eager, paths, example_inputs).items()}
    return {path: call for path, call in found.items() if call is not None}


class _Recorder(Interpreter):
    """Keeps copies of the tensors that some nodes gave, before a later node writes into them."""

    def __init__(self, module: nn.Module, graph: fx.Graph, wanted: set[str]):
        super().__init__(module, graph=graph)
        self.wanted = wanted
        self.values: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        if node.name in self.wanted and isinstance(result, Tensor):
            self.values[node.name] = result.clone()
        return result
