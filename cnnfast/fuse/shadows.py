"""What the nodes of a graph that is being written give, without computing: kinds of values, and sizes.

Every node runs twice on tensors without memory: with the sizes of the example, by which a forward decides,
and with sizes that are symbols, which tell for which others it decides the same.
"""

import operator
from contextlib import ExitStack, suppress

import sympy
import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._pytree import tree_map

from cnnfast.fuse.conditions import Condition, NotExpressible, sizes_of
from cnnfast.fuse.interpret import Interpreter
from cnnfast.fuse.number_nodes import is_arithmetic
from cnnfast.fuse.side_effects import left_alone
from cnnfast.fuse.sizes import Sizes

# Added to sizes by dimension: what is equal for the example may be so by chance. Where layers ask for one
# size, mostly, nothing is: at which place, by the number of dimensions.
_MORE = (3, 64, 96, 160, 32)
_CHANNELS_AT = {2: 1, 3: 2, 4: 1, 5: 1}
_NUMBERS = ("shape", "ndim")
_METHODS = ("size", "dim", "numel", "nelement", "ndimension")
_KINDS = ("dtype", "device", "is_cuda", "is_mps", "is_sparse", "is_quantized", "layout")
_KIND_METHODS = ("is_floating_point", "is_complex")


# Python's own would settle on the numbers of the example.
_OF_SYMBOLS = {int: torch.sym_int, float: torch.sym_float, max: torch.sym_max, min: torch.sym_min}


class NotDecided(Exception):
    """Why a forward's decision cannot be made while it is traced."""


class Shadows:
    """The values of a graph's nodes for example arguments; `sizes` collects what was decided by.

    kinds: whether types and devices decide too; they are part of no condition.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, args: tuple, kinds: bool):
        self._kinds = kinds
        self._real = _Run(root, graph, FakeTensorMode(allow_non_fake_inputs=True), args)
        self._symbolic = _Symbolic(root, graph, args)
        self._conditions: list[Condition] = []
        self._asked = False

    def value(self, node: fx.Node) -> object:
        """What the node gives, as far as no tensor's values count. Raises NotDecided."""
        try:
            return self._real.value(node)
        except Exception as error:  # whatever a forward raises without values
            raise NotDecided(f"{type(error).__name__}: {error}") from error

    def decide(self, node: fx.Node) -> object:
        """The number, bool or tuple that a node gives, noted as a condition. Raises NotDecided."""
        value = self.value(node)
        if isinstance(value, Tensor) or not self._is_by_sizes(node, set()):
            raise NotDecided("it is more than sizes")
        try:
            found = _conditions(self._symbolic.value(node), value)
            if any(c.relation in (sympy.true, sympy.false) and bool(c.relation) != c.holds for c in found):
                raise NotDecided("sizes do not follow those of the arguments")
            self._conditions += found
        except NotDecided:
            raise
        except Exception as error:
            raise NotDecided(f"{type(error).__name__}: {error}") from error
        return value

    def length(self, node: fx.Node) -> int:
        """Of a shape or a tuple, or how many dimensions a tensor has. Raises NotDecided."""
        value = self.value(node)
        if isinstance(value, Tensor):
            self._asked = True
            return value.dim()
        if not isinstance(value, (tuple, list)):
            raise NotDecided("it has no length")
        self._asked = True
        return len(value)

    def constant(self, node: fx.Node) -> int:
        """The whole number that a node gives for inputs of any size, but for channels. Raises NotDecided."""
        value, found = self.value(node), None
        if isinstance(value, int) and self._is_by_sizes(node, set()):
            try:
                found = self._symbolic.value(node)
            except Exception as error:
                raise NotDecided(str(error)) from error
        if not isinstance(found, (int, torch.SymInt)):
            raise NotDecided("it is no whole number")
        expression = _expression(found)
        if not expression.free_symbols <= self._symbolic.channels or (
            expression.is_number and expression != value
        ):
            raise NotDecided("it is no number that is the same for all sizes")
        self._conditions.append(Condition(sympy.Eq(expression, value), True))
        self._asked = True
        return value

    def _is_by_sizes(self, node: fx.Node, seen: set[fx.Node]) -> bool:
        """Whether nothing but tensors' sizes, and their kinds where those count, are behind a value."""
        if node in seen:
            return True
        seen.add(node)
        if node.op == "call_function" and node.target is getattr:
            return node.args[1] in _NUMBERS or (self._kinds and node.args[1] in _KINDS)
        if node.op == "call_method":
            return node.target in _METHODS or (self._kinds and node.target in _KIND_METHODS)
        given = [self.value(source) for source in node.all_input_nodes]
        if not is_arithmetic(node) or any(isinstance(value, Tensor) for value in given):
            return False
        return all(self._is_by_sizes(source, seen) for source in node.all_input_nodes)

    def sizes(self) -> Sizes | None:
        """What has to hold; None where nothing depends on sizes and ranks. Raises NotDecided."""
        if not self._conditions and not self._asked:
            return None
        pinned, settled = self._symbolic.settled()
        conditions = []
        for condition in dict.fromkeys((*settled, *self._conditions)):
            relation = condition.relation.subs(pinned)
            if relation not in (sympy.true, sympy.false):
                conditions.append(Condition(relation, condition.holds))
            elif bool(relation) != condition.holds:
                raise NotDecided("the sizes that layers ask for contradict those of the example")
        try:
            return sizes_of(conditions, self._symbolic.symbols, self._symbolic.ranks)
        except NotExpressible as error:
            raise NotDecided(f"they are no whole-number expression of the inputs' sizes: {error}") from error


class _Run(Interpreter):
    """A graph that grows, run as far as is asked for."""

    def __init__(self, root: nn.Module, graph: fx.Graph, mode: FakeTensorMode, args: tuple):
        super().__init__(root, graph=graph, garbage_collect_values=False)
        self._mode = mode
        self._given = iter(tree_map(self._shadow, args))
        self._failed: Exception | None = None

    def _shadow(self, value: object) -> object:
        return self._mode.from_tensor(value) if isinstance(value, Tensor) else value

    def value(self, node: fx.Node) -> object:
        if node not in self.env:
            if self._failed is not None:
                raise self._failed
            try:
                self._run_up_to(node)
            except Exception as error:
                self._failed = error
                raise
        return self.env[node]

    def get_attr(self, target: str, args: tuple, kwargs: dict) -> object:
        """A tensor without memory, which may be written to."""
        value = super().get_attr(target, args, kwargs)
        return self._mode.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value

    def _run_up_to(self, last: fx.Node) -> None:
        nodes = list(self.graph.nodes)
        waiting = [node for node in nodes[: nodes.index(last) + 1] if node not in self.env]
        with ExitStack() as stack:
            for node in waiting:
                if node.op == "call_module":
                    stack.enter_context(left_alone(self.module.get_submodule(node.target)))
            for context in (torch.no_grad(), enable_python_dispatcher(), self._mode):
                stack.enter_context(context)
            for node in waiting:
                self.env[node] = next(self._given) if node.op == "placeholder" else self.run_node(node)


class _Tuples:
    """A comparison of tuples of sizes, which Python would settle at once."""

    def __init__(self, equal: bool, first: tuple, second: tuple):
        same = len(first) == len(second)
        pairs = zip(first, second, strict=True) if same else ()
        self.relation = sympy.And(*(sympy.Eq(*map(_expression, pair)) for pair in pairs), sympy.sympify(same))
        self.relation = self.relation if equal else sympy.Not(self.relation)


class _Symbolic(_Run):
    """A run whose sizes are symbols."""

    def __init__(self, root: nn.Module, graph: fx.Graph, args: tuple):
        self.shapes = ShapeEnv(specialize_zero_one=False, duck_shape=False)
        self.symbols: dict[sympy.Symbol, tuple[int, int]] = {}
        self.channels: set[sympy.Symbol] = set()
        self.ranks: list[int] = []
        mode = FakeTensorMode(shape_env=self.shapes, allow_non_fake_inputs=True)
        super().__init__(root, graph, mode, args)

    def _shadow(self, value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        number, rank = len(self.ranks), value.dim()
        more = [0 if d == _CHANNELS_AT.get(rank) else _MORE[d % len(_MORE)] for d in range(rank)]
        sizes = [size + by for size, by in zip(value.shape, more, strict=True)]
        kinds = [DimDynamic.DYNAMIC] * rank
        shadow = self._mode.from_tensor(
            torch.empty(sizes, dtype=value.dtype),
            symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds),
            source=ConstantSource(f"argument_{number}"),
        )
        self.symbols |= {
            size.node.expr: (number, d)
            for d, size in enumerate(shadow.shape)
            if isinstance(size, torch.SymInt)
        }
        self.channels |= {
            symbol for symbol, at in self.symbols.items() if at == (number, _CHANNELS_AT.get(rank))
        }
        self.ranks.append(rank)
        return shadow

    def call_function(self, target: object, args: tuple, kwargs: dict) -> object:
        if target in (operator.eq, operator.ne) and all(isinstance(arg, (tuple, list)) for arg in args):
            return _Tuples(target is operator.eq, *map(tuple, args))
        target = _OF_SYMBOLS.get(target, target)
        return super().call_function(target, args, kwargs)

    def settled(self) -> tuple[dict[sympy.Symbol, sympy.Integer], list[Condition]]:
        """Sizes for which layers take one number alone, such as channels, and those that have to be equal.

        Other numbers are an error of these layers, whatever a forward decides.
        """
        with suppress(Exception):  # up to the last node that runs without values
            self.value(next(reversed(self.graph.nodes)))
        replaced = {symbol: self.shapes.replacements.get(symbol) for symbol in self.symbols}
        pinned = {s: number for s, number in replaced.items() if isinstance(number, sympy.Integer)}
        equal = [
            Condition(sympy.Eq(symbol, other, evaluate=False), True)
            for symbol, other in replaced.items()
            if other is not None and symbol not in pinned
        ]
        return pinned, equal


def _expression(value: object) -> sympy.Basic:
    return value.node.expr if isinstance(value, (torch.SymInt, torch.SymBool)) else sympy.sympify(value)


def _conditions(found: object, value: object) -> list[Condition]:
    """What has to hold for a symbolic value to be the example's."""
    if isinstance(found, _Tuples):
        return [Condition(found.relation, bool(value))]
    if isinstance(found, (tuple, list)):
        pairs = zip(found, value, strict=True)
        return [condition for pair in pairs for condition in _conditions(*pair)]
    if isinstance(found, torch.SymBool):
        return [Condition(found.node.expr, bool(value))]
    if isinstance(found, torch.SymInt):
        return [Condition(sympy.Eq(found.node.expr, int(value)), True)]
    if found != value:
        raise NotDecided("sizes do not follow those of the arguments")
    return []
