"""What the nodes of a traced graph give for example inputs: shapes, memory, multiply-adds."""

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves, tree_map

from cnnfast.fuse.check import same_values
from cnnfast.fuse.interpret import Interpreter
from cnnfast.fuse.kinds import writes_in_place
from cnnfast.fuse.side_effects import left_alone, write_count
from cnnfast.fuse.tracing import NotTraceable, first_line

Place = tuple[tuple[int, ...], tuple[int, ...], int]  # of a tensor in its memory: sizes, strides, offset


@dataclass
class Record:
    """By node: shapes and dtypes of tensors, their memory, multiply-adds, arguments of some calls."""

    shapes: dict[fx.Node, torch.Size] = field(default_factory=dict)
    dtypes: dict[fx.Node, torch.dtype] = field(default_factory=dict)
    memory: dict[fx.Node, int] = field(default_factory=dict)  # nodes with one number share memory
    wrote: set[fx.Node] = field(default_factory=set)  # nodes that changed a tensor that they were given
    macs: dict[fx.Node, int] = field(default_factory=dict)
    arguments: dict[fx.Node, tuple] = field(default_factory=dict)
    result: object = None  # of the network
    follows: dict[fx.Node, bool] = field(default_factory=dict)  # tensors: twice as long for twice the images
    places: dict[fx.Node, Place] = field(default_factory=dict)
    larger_places: Callable[[], dict[fx.Node, Place]] = dict  # for larger images, where known
    more_places: dict[fx.Node, Place] = field(default_factory=dict)  # for more images, where known

    def larger(self) -> dict[fx.Node, torch.Size]:
        """The shapes for larger images, where known."""
        return {node: torch.Size(sizes) for node, (sizes, _, _) in self.larger_places().items()}


def record(graph: fx.Graph, network: nn.Module, inputs: tuple, kept: Iterable[fx.Node] = ()) -> Record:
    """Run the graph once, and the network; kept: calls whose arguments are to be kept.

    The inputs themselves stay as they are. Raises NotTraceable where a call writes into tensors and does
    not say so by its name, and where the graph does not run, or gives other values than the network: a
    forward may ask for more than a graph can tell. What the network raises goes through.
    """
    with torch.no_grad(), left_alone(network):
        wanted = network(*(copied(value) for value in inputs))
    try:
        made = _recorded(graph, network, inputs, kept)
    except NotTraceable as error:
        raise NotTraceable(first_line(error)) from error  # fx tells below which node it was
    except Exception as error:
        raise NotTraceable(f"its graph does not run ({type(error).__name__}: {first_line(error)})") from error
    if not (same_values(made.result, wanted) or same_values(_run(graph, network, inputs), wanted)):
        raise NotTraceable("its graph gives other values than its forward")
    return made


def _run(graph: fx.Graph, network: nn.Module, inputs: tuple) -> object:
    """The graph without the counting of operations, under which a few of torch's round otherwise."""
    with torch.no_grad(), left_alone(network):
        return Interpreter(network, graph=graph).run(*(copied(value) for value in inputs))


def _recorded(graph: fx.Graph, network: nn.Module, inputs: tuple, kept: Iterable[fx.Node]) -> Record:
    recorder = _Recorder(network, graph, set(kept))
    with torch.no_grad(), left_alone(network), recorder.counter:
        recorder.made.result = recorder.run(*(copied(value) for value in inputs))
    recorder.made.larger_places = functools.cache(lambda: _places_for_larger(graph, network, inputs))
    return recorder.made


def record_batch(graph: fx.Graph, network: nn.Module, inputs: tuple, made: Record) -> None:
    """Note which values follow the batch, from a second run on each image twice.

    Nothing is noted where the inputs are no batch, or the network does not take another one.
    """
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors_in(inputs)}
    if len(sizes) != 1 or 0 in sizes:
        return
    try:
        doubled = _recorded(graph, network, with_tensors(lambda x: torch.cat([x, x]), inputs), ())
    except Exception:  # whatever a forward raises that is made for one batch
        return
    made.more_places = doubled.places
    for node, shape in made.shapes.items():
        other = doubled.shapes.get(node, torch.Size())
        made.follows[node] = len(shape) > 0 and list(other) == [2 * shape[0], *shape[1:]]


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def by_position(module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
    """A call's arguments in the order of the forward's parameters, with the defaults between them.

    None where an argument has no position.
    """
    if not kwargs:
        return args
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):  # a forward without a signature
        return None
    parameters = list(bound.signature.parameters.values())
    last = max(i for i, parameter in enumerate(parameters) if parameter.name in bound.arguments)
    if any(parameter.kind not in _POSITIONAL for parameter in parameters[: last + 1]):
        return None
    bound.apply_defaults()
    return tuple(bound.arguments[parameter.name] for parameter in parameters[: last + 1])


def copied(value: object) -> object:
    """The value with copies of its tensors, which a call may write into without changing the originals."""
    return with_tensors(Tensor.clone, value)


def with_tensors(change: Callable[[Tensor], Tensor], value: object) -> object:
    """The value with its tensors changed, those in nested tuples, lists and dicts too."""
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, value)


def tensors_in(value: object) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


class _Recorder(Interpreter):
    def __init__(self, network: nn.Module, graph: fx.Graph, kept: set[fx.Node]):
        from torch.utils.flop_counter import FlopCounterMode  # imports triton

        super().__init__(network, graph=graph)
        self.made = Record()
        self.kept = kept
        self.counter = FlopCounterMode(display=False)
        self.storages: list[StorageWeakRef] = []  # as long as these live, no number stands for two memories

    def run_node(self, node: fx.Node):
        before = self.counter.get_total_flops()
        given = [] if node.op in ("placeholder", "get_attr", "output") else self._given(node)
        versions = [write_count(tensor) for tensor in given]
        result = super().run_node(node)
        self.made.macs[node] = (self.counter.get_total_flops() - before) // 2
        changed = [t for t, version in zip(given, versions, strict=True) if write_count(t) != version]
        if changed:
            self.made.wrote.add(node)
        if changed and not (writes_in_place(node, self.module) and all(t is given[0] for t in changed)):
            raise NotTraceable(f"'{node.target}' writes into its arguments")
        if isinstance(result, Tensor):
            self._note(node, result)
        return result

    def _given(self, node: fx.Node) -> list[Tensor]:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node in self.kept:
            given = by_position(self.module.get_submodule(node.target), args, kwargs)
            if given is not None:
                self.made.arguments[node] = tuple(copied(value) for value in given)
        return tensors_in((args, kwargs))

    def _note(self, node: fx.Node, result: Tensor) -> None:
        self.made.shapes[node], self.made.dtypes[node] = result.shape, result.dtype
        if result.layout == torch.strided:
            storage = StorageWeakRef(result.untyped_storage())
            self.storages.append(storage)
            self.made.memory[node] = storage.cdata
            self.made.places[node] = _place(result)


def _place(tensor: Tensor) -> Place:
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


_LARGER = ((2, 4), (2, 2))  # times height and width; the second for networks of square images


def _places_for_larger(graph: fx.Graph, network: nn.Module, inputs: tuple) -> dict[fx.Node, Place]:
    """Shapes and strides for larger images, without computing: what is equal for one may be so by chance.

    Tensors of three dimensions are lines, (N, C, L), if the network takes longer ones; else they stay.
    Empty where the network does not take other sizes; a plan then knows those of its example alone.
    """
    has_lines = any(tensor.dim() == 3 for tensor in tensors_in(inputs))
    for longer in (True, False) if has_lines else (False,):
        for factors in _LARGER:
            try:
                return _places(graph, network, inputs, factors, longer)
            except Exception:  # whatever a forward raises that is made for one size, or needs values
                continue
    return {}


def _places(
    graph: fx.Graph, network: nn.Module, inputs: tuple, factors: tuple[int, int], longer: bool
) -> dict[fx.Node, Place]:
    with left_alone(network), FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        larger = with_tensors(lambda x: mode.from_tensor(_enlarged(x, factors, longer)), inputs)
        runner = _Places(network, graph=graph)
        runner.run(*larger)
    return runner.places


def _enlarged(x: Tensor, factors: tuple[int, int], longer: bool) -> Tensor:
    if x.dim() != 4 and not (longer and x.dim() == 3):
        return x
    times = factors if x.dim() == 4 else factors[1:]
    sides = (size * factor for size, factor in zip(x.shape[2:], times, strict=True))
    return x.new_empty(()).expand(*x.shape[:2], *sides)


class _Places(Interpreter):
    def __init__(self, network: nn.Module, graph: fx.Graph):
        super().__init__(network, graph=graph)
        self.places: dict[fx.Node, Place] = {}

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        if isinstance(result, Tensor) and result.layout == torch.strided:
            self.places[node] = _place(result)
        return result
