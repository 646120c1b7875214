"""torch.fx tracing of a network down to the layers that cnnfast knows by name."""

import dis
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from cnnfast.fuse.foreign import is_frozen_norm, is_norm_act
from cnnfast.fuse.given import Given, take_given
from cnnfast.fuse.number_nodes import is_number, is_training_flag
from cnnfast.fuse.opened import functions_opened
from cnnfast.fuse.own_thread import ONE_AT_A_TIME, OwnThreadTracer
from cnnfast.fuse.pieces import is_cut, number_of_pieces, of_number
from cnnfast.fuse.proxies import DECIDES, Converted, Names, NotTraceable, Value, proxies_as_values
from cnnfast.fuse.settled import settle
from cnnfast.fuse.shells import has_hooks, original_class, shell_copy
from cnnfast.fuse.side_effects import Watched
from cnnfast.fuse.signature import NeedsExample, check_arguments, check_own_forward
from cnnfast.fuse.sizes import Sizes
from cnnfast.fuse.surroundings import RandomNumbers, differs_by_call, random_states

if TYPE_CHECKING:
    from cnnfast.fuse.shadows import Shadows

try:
    from torch.fx._symbolic_trace import _maybe_revert_all_patches as without_hooks
except ImportError:  # a torch of other insides: no forward is run while another is traced
    without_hooks = None

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Modules that resist: where sizes are followed a trace takes seconds, and each begins it anew.
_MOST_CLOSED = 2


@dataclass
class Trace:
    """The graph of one forward, and why some modules in it were not stepped into (by path).

    read: by path, attributes whose values stand in the graph as they were.
    sizes: of the arguments for which the graph is right, where it is not for all.
    training: the root's own flag that the graph is for; None: for both.
    """

    graph: fx.Graph
    closed: dict[str, str] = field(default_factory=dict)
    read: dict[str, set[str]] = field(default_factory=dict)
    sizes: Sizes | None = None
    training: bool | None = None


class TakesTwoPaths(NotTraceable):
    """A forward that decides by its own `training`: a graph for each value may stand for it."""


def is_layer(module: nn.Module) -> bool:
    """Whether a module counts as one layer: torch.nn's and cnnfast.nn's own, and their subclasses."""
    if isinstance(module, torch.jit.ScriptModule) or is_frozen_norm(module) or is_norm_act(module):
        return True
    if is_ours(module):
        return not any(is_ours(child) for child in module.children())  # a block of ours is no layer
    if isinstance(module, _CONTAINERS):
        return False
    if type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.")):
        return True
    has_children = next(module.children(), None) is not None
    return not has_children and torch_ancestor(module) is not nn.Module and not _calls_group_norm(module)


def _calls_group_norm(module: nn.Module) -> bool:
    """Subclasses of GroupNorm that convert types around it, or call another function: stepped into."""
    return isinstance(module, nn.GroupNorm) and original_class(module).forward is not nn.GroupNorm.forward


def is_ours(module: nn.Module) -> bool:
    """Whether a module is of cnnfast.nn, or a subclass of one that is."""
    return any(cls.__module__.startswith("cnnfast.nn") for cls in original_class(module).__mro__)


def torch_ancestor(module: nn.Module) -> type:
    """The first class of torch.nn in a module's ancestry, e.g. Conv2d."""
    return next(
        cls for cls in original_class(module).__mro__ if cls.__module__.startswith("torch.nn.modules.")
    )


def trace_paths(
    root: nn.Module,
    is_leaf: Callable[[nn.Module], bool],
    given: Given | None = None,
    args: tuple | None = None,
) -> list[Trace]:
    """The graph of root.forward for both modes; where it decides by its `training`, that of training and
    that of evaluation.

    given, args: which calls it is for, as for `trace`. Raises NotTraceable as that does.
    """
    try:
        return [trace(root, is_leaf, True, args, given=given)]
    except TakesTwoPaths:
        return [trace(root, is_leaf, True, args, flag, given) for flag in (True, False)]


def trace(
    root: nn.Module,
    is_leaf: Callable[[nn.Module], bool],
    live_training: bool,
    args: tuple | None = None,
    training: bool | None = None,
    given: Given | None = None,
) -> Trace:
    """The graph of root.forward; modules for which `is_leaf` holds, and those that resist, are single nodes.

    live_training: `self.training` in a forward becomes a value read at run time (else it is the present
        flag, and the graph holds for that mode alone).
    training: with live_training, what the root's own flag is taken to be.
    args: an example of the arguments that the graph takes; others keep their defaults. Where the forward
        decides by their sizes the graph has the path of the example, and holds for some sizes. Without
        it the graph takes all arguments, and such forwards resist.
    given: which arguments the graph takes, `args` being an example of those, and the values of the others.
    Raises NotTraceable with the reason where root's own forward resists.
    """
    check_own_forward(root)
    if given is None:
        check_arguments(type(root), None if args is None else len(args))
    if live_training:
        _check_graphs(root)
    with ONE_AT_A_TIME:
        return _traced(root, is_leaf, live_training, args, training, given)


def _traced(
    root: nn.Module,
    is_leaf: Callable[[nn.Module], bool],
    live_training: bool,
    args: tuple | None,
    training: bool | None,
    given: Given | None,
) -> Trace:
    closed: dict[str, str] = {}
    names = Names()
    while True:
        probe = shell_copy(root)
        if given is not None:
            take_given(probe, given)
        elif args is not None:
            _take(probe, args)
        kinds = {} if given is None else dict(given.taken)
        tracer = _Tracer(probe, is_leaf, closed, live_training, args, names, training, kinds)
        watched, numbers = Watched(probe), RandomNumbers()
        try:
            with tracer.noting_reads(), proxies_as_values(), names.replaced():
                with functions_opened(without_gradients=not live_training):
                    graph = tracer.trace(probe)
            tracer.refuse_draws()
            tracer.settle()
            sizes = tracer.sizes()
        except Converted:
            continue
        except Exception as error:
            if tracer.resisting in ("", None):
                kind = type(error) if isinstance(error, NotTraceable) else NotTraceable
                raise kind(first_line(error)) from error
            closed[tracer.resisting] = first_line(error)
            if live_training and args is not None and len(closed) > _MOST_CLOSED:
                raise NotTraceable(first_line(error)) from error
            continue
        finally:
            written = watched.take_back()
            numbers.take_back()
        switched = _read_and_switched(probe, tracer.read) if live_training else None
        if written:
            path, attribute = written[0]
            path, reason = tracer.writer(path), f"its forward changes the module (attribute '{attribute}')"
        elif switched is not None:
            path, attribute = switched
            reason = f"its forward reads '{attribute}', which train() or eval() sets"
        else:
            _drop_unused_attributes(graph)
            _inputs_by_position(graph, probe)
            return Trace(graph, closed, tracer.read, sizes, training)
        if path == "":
            raise NotTraceable(reason)
        closed[path] = reason


class _Tracer(OwnThreadTracer):
    proxy_buffer_attributes = True

    def __init__(self, root, is_leaf, closed, live_training, args, names, training, kinds):
        super().__init__()
        self.paths = {module: path for path, module in root.named_modules()}
        self._is_leaf = is_leaf
        self._closed = closed
        self._live_training, self._training = live_training, training
        self._depth: list[str] = [""]
        self.resisting: str | None = None  # the innermost module whose forward raised
        self._modes = self._present_modes()
        self.read: dict[str, set[str]] = {}
        self._random = random_states()
        self._args, self._shadows, self._aside = args, None, False
        self.names = names
        self._kinds = kinds  # of arguments, by name

    @contextmanager
    def noting_reads(self) -> Iterator[None]:
        """Note the attributes that forwards read: numbers and the like become part of the graph."""

        def __getattribute__(module, name):
            value = object.__getattribute__(module, name)
            if self.is_elsewhere():
                return value
            if not self._aside and name not in _INTERNAL and module in self.paths and name in module.__dict__:
                if differs_by_call(value):
                    raise NotTraceable(f"its forward reads '{name}', which differs from call to call")
                if not isinstance(value, torch.Tensor):  # those are read again at every call
                    self.read.setdefault(self.paths[module], set()).add(name)
            return value

        nn.Module.__getattribute__ = __getattribute__  # as fx exchanges __getattr__ and __call__
        try:
            yield
        finally:
            del nn.Module.__getattribute__

    def create_args_for_root(self, *args, **kwargs):
        result = super().create_args_for_root(*args, **kwargs)
        if self._live_training:
            self._proxy_training_flags()
        return result

    def _proxy_training_flags(self):
        for module, path in self.paths.items():
            if path == "" and self._training is not None:
                module.__dict__["training"] = self._training
            elif not self.is_leaf_module(module, path) or path == "":
                target = f"{path}.training" if path else "training"
                module.__dict__["training"] = self.create_proxy("get_attr", target, (), {})

    def is_leaf_module(self, module, path):
        return path in self._closed or self._is_leaf(module) or has_hooks(module)

    def path_of_module(self, module):
        if module not in self.paths:
            raise NotTraceable("its forward calls a module that is not registered in it: make it a child")
        return super().path_of_module(module)

    def writer(self, path: str) -> str:
        """The innermost module that was stepped into and can have written to the module at `path`."""
        while path and self.is_leaf_module(self.root.get_submodule(path), path):
            path = path.rpartition(".")[0]
        return path

    def call_module(self, module, forward, args, kwargs):
        if self.is_elsewhere():
            return forward(*args, **kwargs)
        path = self.path_of_module(module)
        self._depth.append(path)
        try:
            result = super().call_module(module, forward, args, kwargs)
            self.refuse_draws()
            return result
        except Exception:
            if self.resisting is None:
                self.resisting = self._depth[-1] if not self.is_leaf_module(module, path) else self._depth[-2]
            raise
        finally:
            self._depth.pop()

    def refuse_draws(self) -> None:
        """Random numbers that were drawn while tracing would be the same ones for ever."""
        if random_states() != self._random:
            raise NotTraceable("its forward draws random numbers that are no tensor made from its input")

    def proxy(self, node):
        return Value(node, self)

    def create_node(self, kind, target, args, kwargs, name=None, type_expr=None):
        if kind.startswith("call_") and self._modes != (modes := self._present_modes()):
            what = "autocast" if modes[0] != self._modes[0] else "the recording of gradients"
            raise NotTraceable(f"its forward turns {what} on or off for a part of itself")
        return super().create_node(kind, target, args, kwargs, name, type_expr)

    def _present_modes(self) -> tuple:
        """What a graph does not write down: autocast, and in training whether gradients are recorded."""
        autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        return autocast, self._live_training and torch.is_grad_enabled()

    def create_arg(self, a):
        """An OrderedDict stays one, and so do results with named fields; fx alone would write down a dict."""
        if type(a) is OrderedDict:
            pairs = [(key, self.create_arg(value)) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (pairs,), {})
        if isinstance(a, dict) and is_dataclass(a):  # what networks of transformers and diffusers return
            return self._fields(a)
        if isinstance(a, dict) and type(a) not in (dict, fx.immutable_collections.immutable_dict):
            raise NotTraceable(f"it gives a {type(a).__name__}, a dict of a kind of its own")
        return super().create_arg(a)

    def _fields(self, result: object) -> fx.Node:
        named = [field for field in fields(result) if field.init]
        if len(named) < len(fields(result)):
            raise NotTraceable(f"it gives a {type(result).__name__} whose fields are not all arguments")
        given = {field.name: self.create_arg(getattr(result, field.name)) for field in named}
        return self.create_node("call_function", type(result), (), given)

    def to_bool(self, obj):
        if is_training_flag(obj.node):
            raise TakesTwoPaths("its forward takes another path in training than in evaluation")
        return bool(self.decided(obj.node))

    def decided(self, node: fx.Node) -> object:
        """What a node gives for the sizes of the example, which become a condition."""
        if self._args is None:
            raise NeedsExample(DECIDES)
        with self._looking_ahead() as shadows:
            return shadows.decide(node)

    @contextmanager
    def _looking_ahead(self) -> Iterator["Shadows"]:
        """What the graph so far gives, run without the hooks of tracing. Raises NotTraceable."""
        if without_hooks is None:
            raise NotTraceable(DECIDES)
        from cnnfast.fuse.shadows import NotDecided, Shadows  # imports sympy

        self._aside, numbers = True, RandomNumbers()
        try:
            with without_hooks():
                if self._shadows is None:
                    self._shadows = Shadows(self.root, self.graph, self._args, kinds=not self._live_training)
                yield self._shadows
        except NotDecided as error:
            raise NotTraceable(DECIDES) from error
        finally:
            numbers.take_back()
            self._aside = False

    def sizes(self) -> Sizes | None:
        """Of the arguments for which the graph holds."""
        if self._shadows is None:
            return None
        from cnnfast.fuse.shadows import NotDecided

        try:
            return self._shadows.sizes()
        except NotDecided as error:
            raise NotTraceable(f"{DECIDES}, and {error}") from error

    def settle(self) -> None:
        """Write numbers into the graph where its arguments are known."""
        if self._args is not None:
            settle(self.graph, self.root, self.constant, self.decided)

    def constant(self, node: fx.Node) -> int:
        """A size that is the same for all inputs, such as the channels."""
        if self._args is None:
            raise NeedsExample(DECIDES)
        with self._looking_ahead() as shadows:
            return shadows.constant(node)

    def length(self, node: fx.Node) -> int:
        """How many sizes a shape has, values a tuple, or dimensions a tensor."""
        if self._args is None:
            raise NeedsExample("its forward asks for the length of a tensor, or of a list that it is given")
        with self._looking_ahead() as shadows:
            return shadows.length(node)

    def rank(self, node: fx.Node) -> int | None:
        """How many dimensions a tensor has, where that is known."""
        try:
            return None if self._args is None else self.length(node)
        except NotTraceable:
            return None

    def class_of(self, node: fx.Node) -> type:
        """What isinstance is to take a value for."""
        if self._args is not None:
            try:
                with self._looking_ahead() as shadows:
                    value = shadows.value(node)
                return Tensor if isinstance(value, Tensor) else type(value)
            except NotTraceable:  # a guess below; the example run of the graph finds a wrong one
                pass
        if node.op == "placeholder" and self._kinds.get(node.target) is not None:
            return self._kinds[node.target]
        if is_number(node):
            return bool if is_training_flag(node) else int
        return tuple if number_of_pieces(node) is not None else Tensor

    def iter(self, obj):
        number = number_of_pieces(obj.node)
        if number is None and is_cut(obj.node) and self._args is not None:
            number = self.length(obj.node)
        if number is not None:
            pieces = self.create_proxy("call_function", of_number, (obj, number), {})
            return iter([pieces[i] for i in range(number)])
        if self._args is not None and is_number(obj.node):
            return iter([obj[i] for i in range(self.length(obj.node))])
        kind = NeedsExample if self._args is None else NotTraceable
        raise kind("its forward loops over a tensor, or over a list or dict that it is given")

    def get_fresh_qualname(self, prefix):
        raise NotTraceable(
            "its forward makes a tensor that is no parameter or buffer: register it as a buffer"
        )


_INTERNAL = frozenset((*nn.Module().__dict__, "__dict__", "__class__"))


def is_fixed(value: object) -> bool:
    """Whether an argument's value becomes part of the graph: None, flags and words, which decide a path."""
    return value is None or isinstance(value, (bool, str))


def _take(probe: nn.Module, args: tuple) -> None:
    """Give a module a forward with the first arguments alone, for the fixed values among `args`."""
    cls = type(probe)
    names = list(inspect.signature(cls.forward).parameters)
    fixed = {f"fixed_{i}": value for i, value in enumerate(args) if is_fixed(value)}
    if len(args) + 1 < len(names) or fixed:
        given = [f"fixed_{i}" if is_fixed(value) else names[i + 1] for i, value in enumerate(args)]
        source = (
            f"def forward({', '.join(names[: len(args) + 1])}):\n"
            f"    return original({', '.join([names[0], *given])})"
        )
        body: dict = {"original": cls.forward, **fixed}
        exec(source, body)
        shortened = {"forward": body["forward"], "__module__": cls.__module__}
        probe.__class__ = type(cls.__name__, (cls,), shortened)


def _read_and_switched(root: nn.Module, read: dict[str, set[str]]) -> tuple[str, str] | None:
    """An attribute that a forward read and that train() or eval() of some module sets, and whose it is."""
    functions = {getattr(type(module), name) for module in root.modules() for name in ("train", "eval")}
    codes = [function.__code__ for function in functions if hasattr(function, "__code__")]
    stored = {
        step.argval for code in codes for step in dis.get_instructions(code) if step.opname == "STORE_ATTR"
    }
    return next(((path, name) for path, names in read.items() for name in sorted(names & stored)), None)


def _check_graphs(root: nn.Module) -> None:
    """What torchvision's feature extractors are: a graph for training and one for evaluation."""
    graphs = [getattr(root, name, None) for name in ("train_graph", "eval_graph")]
    if all(isinstance(graph, fx.Graph) for graph in graphs):
        train, evaluation = (graph.python_code("self").src for graph in graphs)
        if train != evaluation:
            raise NotTraceable("it has a graph of its own for training and for evaluation, which differ")


def _drop_unused_attributes(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _inputs_by_position(graph: fx.Graph, root: nn.Module) -> None:
    """conv(input=x) as conv(x): one form for whoever reads the graph."""
    for node in graph.nodes:
        named = node.op == "call_function" and "input" in node.kwargs
        if node.op == "call_module" and not node.args and node.kwargs:
            module = root.get_submodule(node.target)
            first = next(iter(inspect.signature(module.forward).parameters), None)
            named = is_layer(module) and first == "input" and first in node.kwargs
        if named and not node.args:
            node.args = (node.kwargs["input"],)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "input"}


def first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
