"""torch.fx tracing of a network down to the layers that cnnfast knows by name."""

import builtins
import dis
import inspect
import operator
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from cnnfast.fuse.foreign import is_frozen_norm, is_norm_act
from cnnfast.fuse.pieces import number_of_pieces, of_number
from cnnfast.fuse.shells import has_hooks, original_class, shell_copy
from cnnfast.fuse.side_effects import Watched, left_alone
from cnnfast.fuse.sizes import Sizes
from cnnfast.fuse.surroundings import RandomNumbers, differs_by_call, random_states

if TYPE_CHECKING:
    from cnnfast.fuse.shadows import Shadows

try:
    from torch.fx._symbolic_trace import _maybe_revert_all_patches as without_hooks
except ImportError:  # a torch of other insides: no forward is run while another is traced
    without_hooks = None

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NUMBER_ATTRIBUTES = ("shape", "ndim", "training")
_NUMBER_METHODS = ("size", "dim", "numel", "nelement", "stride")


class NotTraceable(Exception):
    """Why a forward cannot be written down as a graph."""


@dataclass
class Trace:
    """The graph of one forward, and why some modules in it were not stepped into (by path).

    read: by path, attributes whose values stand in the graph as they were.
    sizes: of the arguments for which the graph is right, where it is not for all.
    """

    graph: fx.Graph
    closed: dict[str, str] = field(default_factory=dict)
    read: dict[str, set[str]] = field(default_factory=dict)
    sizes: Sizes | None = None


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
    return not has_children and torch_ancestor(module) is not nn.Module


def is_ours(module: nn.Module) -> bool:
    """Whether a module is of cnnfast.nn, or a subclass of one that is."""
    return any(cls.__module__.startswith("cnnfast.nn") for cls in original_class(module).__mro__)


def torch_ancestor(module: nn.Module) -> type:
    """The first class of torch.nn in a module's ancestry, e.g. Conv2d."""
    return next(
        cls for cls in original_class(module).__mro__ if cls.__module__.startswith("torch.nn.modules.")
    )


def trace(
    root: nn.Module,
    is_leaf: Callable[[nn.Module], bool],
    live_training: bool,
    args: tuple | None = None,
) -> Trace:
    """The graph of root.forward; modules for which `is_leaf` holds, and those that resist, are single nodes.

    live_training: `self.training` in a forward becomes a value read at run time (else it is the present
        flag, and
    the graph holds for that mode alone).
    args: an example of the arguments that the graph takes; others keep their defaults. Where the forward
        decides by their sizes the graph has the path of the example, and holds for some sizes. Without
        it the graph takes all arguments, and such forwards resist.
    Raises NotTraceable with the reason where root's own forward resists.
    """
    given = None if args is None else len(args)
    _check_signature(root, given)
    if live_training:
        _check_graphs(root)
    closed: dict[str, str] = {}
    while True:
        probe = shell_copy(root)
        if args is not None:
            _take(probe, args)
        tracer = _Tracer(probe, is_leaf, closed, live_training, args)
        watched, numbers = Watched(probe), RandomNumbers()
        try:
            with tracer.noting_reads(), _proxies_as_values():
                graph = tracer.trace(probe)
            tracer.refuse_draws()
            tracer.settle_differences()
            sizes = tracer.sizes()
        except Exception as error:
            if tracer.resisting in ("", None):
                raise NotTraceable(first_line(error)) from error
            closed[tracer.resisting] = first_line(error)
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
            return Trace(graph, closed, tracer.read, sizes)
        if path == "":
            raise NotTraceable(reason)
        closed[path] = reason


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, root, is_leaf, closed, live_training, args):
        super().__init__()
        self.paths = {module: path for path, module in root.named_modules()}
        self._is_leaf = is_leaf
        self._closed = closed
        self._live_training = live_training
        self._depth: list[str] = [""]
        self.resisting: str | None = None  # the innermost module whose forward raised
        self._modes = self._present_modes()
        self.read: dict[str, set[str]] = {}
        self._random = random_states()
        self._args, self._shadows, self._aside = args, None, False

    @contextmanager
    def noting_reads(self) -> Iterator[None]:
        """Note the attributes that forwards read: numbers and the like become part of the graph."""

        def __getattribute__(module, name):
            value = object.__getattribute__(module, name)
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
            if not self.is_leaf_module(module, path) or path == "":
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
        return _Value(node, self)

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
        """An OrderedDict stays one; fx alone would write down a dict."""
        if type(a) is OrderedDict:
            pairs = [(key, self.create_arg(value)) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (pairs,), {})
        return super().create_arg(a)

    def to_bool(self, obj):
        if is_training_flag(obj.node):
            raise NotTraceable("its forward takes another path in training than in evaluation")
        if self._args is not None:
            with self._looking_ahead() as shadows:
                return bool(shadows.decide(obj.node))
        raise NotTraceable(_DECIDES)

    @contextmanager
    def _looking_ahead(self) -> Iterator["Shadows"]:
        """What the graph so far gives, run without the hooks of tracing. Raises NotTraceable."""
        if without_hooks is None:
            raise NotTraceable(_DECIDES)
        from cnnfast.fuse.shadows import NotDecided, Shadows  # imports sympy

        self._aside = True
        try:
            with without_hooks(), left_alone(self.root):
                if self._shadows is None:
                    self._shadows = Shadows(self.root, self.graph, self._args, kinds=not self._live_training)
                yield self._shadows
        except NotDecided as error:
            raise NotTraceable(_DECIDES) from error
        finally:
            self._aside = False

    def sizes(self) -> Sizes | None:
        """Of the arguments for which the graph holds."""
        if self._shadows is None:
            return None
        from cnnfast.fuse.shadows import NotDecided

        try:
            return self._shadows.sizes()
        except NotDecided as error:
            raise NotTraceable(f"{_DECIDES}, and {error}") from error

    def settle_differences(self) -> None:
        """Write differences of sizes as numbers where they are the same for all: those of two crops, say."""
        if self._args is None:
            return
        for node in list(self.graph.nodes):
            if not node.users or not is_number(node) or node.op != "call_function":
                continue
            try:
                if node.target in (operator.sub, operator.neg):
                    _write_number(node, self.constant(node))
                elif node.target is not getattr and not node.all_input_nodes:  # those of settled ones
                    _write_number(node, node.target(*node.args))
            except NotTraceable:
                continue

    def constant(self, node: fx.Node) -> int:
        """A size that is the same for all inputs, such as the channels."""
        if self._args is None:
            raise NotTraceable(_DECIDES)
        with self._looking_ahead() as shadows:
            return shadows.constant(node)

    def length(self, node: fx.Node) -> int:
        """How many sizes a shape has, values a tuple, or dimensions a tensor."""
        if self._args is None:
            raise NotTraceable("its forward asks for the length of a tensor, or of a list that it is given")
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
        if is_number(node):
            return bool if is_training_flag(node) else int
        return tuple if number_of_pieces(node) is not None else Tensor

    def iter(self, obj):
        number = number_of_pieces(obj.node)
        if number is not None:
            pieces = self.create_proxy("call_function", of_number, (obj, number), {})
            return iter([pieces[i] for i in range(number)])
        if self._args is not None and is_number(obj.node):
            return iter([obj[i] for i in range(self.length(obj.node))])
        raise NotTraceable("its forward loops over a tensor, or over a list or dict that it is given")

    def get_fresh_qualname(self, prefix):
        raise NotTraceable(
            "its forward makes a tensor that is no parameter or buffer: register it as a buffer"
        )


def _write_number(node: fx.Node, number: object) -> None:
    """Put a number in the place of a node."""

    def put(source: fx.Node) -> object:
        return number if source is node else source

    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg(user.args, put), fx.map_arg(user.kwargs, put)


class _Value(fx.Proxy):
    """A proxy that writes down `x += y` on tensors as what it is; fx alone would record `x = x + y`.

    What else is done to a tensor's attributes, such as `x.data = y`, has no place in a graph.
    """

    def __getattr__(self, name):
        rank = self.tracer.rank(self.node) if name == "ndim" else None
        return _Attribute(self, name) if rank is None else rank

    def __setattr__(self, name, value):
        _refuse_to_set(self, name)
        super().__setattr__(name, value)

    def __len__(self):
        number = number_of_pieces(self.node)
        return self.tracer.length(self.node) if number is None else number

    def __index__(self):
        return self.tracer.constant(self.node)


class _Attribute(fx.proxy.Attribute):
    """The same for an attribute of a proxy."""

    def __call__(self, *args, **kwargs):
        rank = self.tracer.rank(self.root.node) if self.attr in _RANKS and not args else None
        return super().__call__(*args, **kwargs) if rank is None else rank

    def __setattr__(self, name, value):
        _refuse_to_set(self, name)
        super().__setattr__(name, value)

    def __len__(self):
        return self.tracer.length(self.node)

    def __index__(self):
        return self.tracer.constant(self.node)


_RANKS = ("dim", "ndimension")
_OF_PROXIES = ("tracer", "node", "_node", "root", "attr")


_DECIDES = "its forward decides by the values or sizes of tensors"
# Code that asks whether a value is a proxy, and code that asks whether a tensor is a parameter.
_INSIDE = (
    os.path.dirname(fx.__file__) + os.sep,
    os.path.dirname(os.path.dirname(__file__)) + os.sep,
    nn.parameter.__file__,
)


@contextmanager
def _proxies_as_values() -> Iterator[None]:
    """isinstance(x, Tensor) is asked about the value that a proxy stands for; torch.as_tensor takes one."""
    original, as_tensor = builtins.isinstance, torch.as_tensor

    def isinstance(value, kinds):
        if type(value) not in (_Value, _Attribute) or original(value, kinds):
            return original(value, kinds)
        if sys._getframe(1).f_code.co_filename.startswith(_INSIDE):
            return False
        return issubclass(value.tracer.class_of(value.node), kinds)

    def tensor_of(data, dtype=None, device=None):
        if type(data) not in (_Value, _Attribute):
            return as_tensor(data, dtype=dtype, device=device)
        kinds = {"dtype": dtype, "device": device}
        wanted = {name: kind for name, kind in kinds.items() if kind is not None}
        return data.to(**wanted) if wanted else data

    builtins.isinstance, torch.as_tensor = isinstance, tensor_of
    try:
        yield
    finally:
        builtins.isinstance, torch.as_tensor = original, as_tensor


def _refuse_to_set(proxy: fx.Proxy, name: str) -> None:
    if name not in _OF_PROXIES:
        raise NotTraceable(f"its forward sets an attribute of a tensor ('{name}')")


def _in_place(name: str) -> Callable:
    def method(self, other):
        target = getattr(operator, name[1:] if is_number(self.node) else name)
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow"):
    for _class in (_Value, _Attribute):
        setattr(_class, f"__{_name}__", _in_place(_name))


def is_number(node: fx.Node) -> bool:
    """Whether a node stands for a size or another plain number, not for a tensor."""
    if node.op == "call_method":
        return node.target in _NUMBER_METHODS
    if node.op == "get_attr":
        return is_training_flag(node)
    if node.target is getattr:
        return node.args[1] in _NUMBER_ATTRIBUTES
    arithmetic = getattr(node.target, "__module__", None) == "_operator"
    return arithmetic and all(is_number(arg) for arg in node.args if isinstance(arg, fx.Node))


def is_training_flag(node: fx.Node) -> bool:
    return node.op == "get_attr" and str(node.target).split(".")[-1] == "training"


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


def _check_signature(root: nn.Module, given: int | None) -> None:
    if "forward" in root.__dict__:
        raise NotTraceable("its forward was replaced on the instance")
    parameters = list(inspect.signature(type(root).forward).parameters.values())[1:]
    rest = [] if given is None else parameters[given:]
    rest = [p for p in rest if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if any(p.default is p.empty for p in rest):
        raise NotTraceable(f"its forward takes more than {given} arguments")
    for parameter in parameters[:given]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise NotTraceable(f"its forward takes any number of arguments (*{parameter.name})")
        optional = parameter.default is not parameter.empty and given is None
        if optional or parameter.kind is parameter.KEYWORD_ONLY:
            raise NotTraceable(f"its forward has an optional argument ({parameter.name})")


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
