"""From a traced graph to steps: the walk; what each node becomes stands in layers.py and shapes.py."""

import inspect
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from cnnfast.fuse.kinds import activation_of, module_of, why_not_plain, writes_in_place
from cnnfast.fuse.number_nodes import dimension_of, is_number
from cnnfast.fuse.tracing import torch_ancestor
from cnnfast.plan.nodes import ANY, Act, Op
from cnnfast.plan.owners import owner_of
from cnnfast.plan.record import Record
from cnnfast.plan.steps import Step

Handler = Callable[..., "Value"]
FUNCTIONS: dict[object, Handler] = {}
METHODS: dict[str, Handler] = {}
NAMED: dict[str, Handler] = {}  # functions of packages that need not be installed
MODULES: dict[type, Handler] = {}
OF_LINES: set[Handler] = set()  # handlers that take lines for images of one row
START_LINES: set[Handler] = set()  # and those of layers that know (N, C, L) alone
ACTS = {"none": Act.NONE, "relu": Act.RELU, "sigmoid": Act.SIGMOID}
_VIEWS = (Op.FLATTEN, Op.RESHAPE_IMAGE, Op.SLICE, Op.TO_IMAGE, Op.TO_LINE)


_RANDOM = ("rand_like", "randn_like", "randint_like", "bernoulli", "normal", "multinomial", "poisson")
_KINDS = {"dtype": torch.float32, "device": torch.device("cpu")}
_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg)


_COMPUTED = "a number in it is computed in the forward from more than numbers of channels"
# What an activation works on as it lies.
_BY_VALUE = ("nhwc", "line", "grouped", "shuffled", "plane", "vector")


class Unsupported(Exception):
    """Why a node has no place in a plan."""


@dataclass(frozen=True, eq=False)
class Respelled:
    """A tensor whose shape is not that of its step's value: the same values under another shape.

    kind: "nhwc" (channels last), "line" (N, C, L of an image of one row),
    "grouped" (N, groups, C / groups, H, W), "shuffled" (the same with groups
    and channels exchanged), "plane" (N, H, W of one channel), "vector" (the channels of an image of one pixel
    in their order, in any other shape), "pixels" (N, C, H * W or N, 1, C, H * W), "attention" (the softmax of
    the step's value over pixels, (N, 1, H * W) or (N, 1, H * W, 1)), "blocks" (N, C, H / b, b, W / b, b),
    "depth" (its blocks in front, N, b, b, C, H / b, W / b), "padded" (with zeros around it, as many as the
    forward computes) or "expanded" (N, C, H, W with one value
    per channel; the step has H = W = 1).
    """

    kind: str
    step: Step
    groups: int = 0


Value = Step | Respelled | list["Step | Respelled"]


class _Behind(Exception):
    """A node behind one that has no place: not worth a reason of its own."""


@dataclass(frozen=True)
class Refusal:
    """A layer that has no place in a plan."""

    name: str
    what: str
    reason: str


def respell(like: Value, step: Step) -> Value:
    """A step that works value by value, in the shape of its operand."""
    return Respelled(like.kind, step, like.groups) if isinstance(like, Respelled) else step


def _as_line(value: Step | Respelled) -> Respelled:
    return Respelled("line", value) if isinstance(value, Step) else value


def _step_of(value: Value) -> Step:
    return value.step if isinstance(value, Respelled) else value


def steps_of(value: Value) -> list[Step]:
    """The steps that give a value."""
    return list(map(_step_of, value)) if isinstance(value, list) else [_step_of(value)]


def lowers(
    *functions: object,
    methods: Iterable[str] = (),
    modules: Iterable[type] = (),
    named: Iterable[str] = (),
    lines: bool = False,
    starts_lines: bool = False,
) -> Callable[[Handler], Handler]:
    """Register what torch functions, tensor methods or modules become. Arguments as those have them.

    lines: the handler serves (N, C, L) as well, which it sees as images of one row; so is what it gives.
    starts_lines: of layers whose input is (N, C, L), which a plan may begin with.
    """

    def register(handler: Handler) -> Handler:
        FUNCTIONS.update(dict.fromkeys(functions, handler))
        METHODS.update(dict.fromkeys(methods, handler))
        MODULES.update(dict.fromkeys(modules, handler))
        NAMED.update(dict.fromkeys(named, handler))
        if lines:
            OF_LINES.add(handler)
        if starts_lines:
            START_LINES.add(handler)
        return handler

    return register


class Lowering:
    """One walk over a graph for which there is a record of an example run."""

    def __init__(self, graph: fx.Graph, root: nn.Module, record: Record, closed: dict[str, str]):
        self.graph, self.root, self.record, self.closed = graph, root, record, closed
        self.shapes = record.shapes
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.values: dict[fx.Node, Value] = {}
        self.memory: dict[fx.Node, fx.Node] = {}  # the node whose memory eager PyTorch would share
        self.constants: dict[fx.Node, Tensor] = {}
        self.left: dict[fx.Node, Step] = {}  # lines that leave the plan
        self.placed = 0
        self.inputs: list[Step] = []
        self.free_inputs: set[Step] = set()  # those that a reshape takes in any shape
        self.refusals: list[Refusal] = []
        self.node: fx.Node | None = None
        self.as_images = False  # whether the present handler takes lines for images of one row

    def run(self) -> list[Step]:
        """The output steps; empty where `refusals` says why there are none."""
        outputs: list[Step] = []
        needed = self._needed()
        for node in self.graph.nodes:
            self.node = node
            try:
                if node.op == "output":
                    outputs = [self._output(node.args[0])]
                elif node in needed:
                    self._lower(node)
            except Unsupported as error:
                self.refusals.append(Refusal(self.name_of(node), what_is(node, self.root), str(error)))
            except _Behind:
                pass
        return [] if self.refusals else outputs

    def _needed(self) -> set[fx.Node]:
        """Nodes that the output depends on, and those that write into tensors."""
        needed = {node for node in self.graph.nodes if node.op in ("placeholder", "output")}
        for node in reversed(self.graph.nodes):
            if node in needed or writes_in_place(node, self.root):
                needed.update((node, *node.all_input_nodes))
        return needed

    def _lower(self, node: fx.Node) -> None:
        if is_number(node) or is_kind(node) or is_constant(node, self.root):
            return
        value = self._input(node) if node.op == "placeholder" else self._step_for(node)
        for step in steps_of(value):
            if any(isinstance(setting, fx.Node) for setting in step.settings.values()):
                raise Unsupported(_COMPUTED)
            self.place(step)
        writes = writes_in_place(node, self.root)
        if writes:
            self._overwrite(node.args[0], value)
        self.values[node] = value
        self.memory[node] = self.memory[node.args[0]] if writes or self._is_alias(node, value) else node

    def _step_for(self, node: fx.Node) -> Value:
        module = module_of(node, self.root) if node.op == "call_module" else None
        reason = (self.closed.get(node.target) or why_not_plain(module)) if module is not None else None
        if reason is not None:
            raise Unsupported(reason)
        activation = activation_of(node, self.root)
        if activation is not None:
            return self.activation(node.args[0], ACTS[activation])
        handler = self._handler_of(node)
        if handler is None:
            raise Unsupported("a plan of this version has no node for it")
        before = () if module is None else (module,)
        return self._call(handler, node, *before, *node.args, **node.kwargs)

    def _handler_of(self, node: fx.Node) -> Handler | None:
        if node.op == "call_module":
            return MODULES.get(torch_ancestor(module_of(node, self.root)))
        if node.op == "call_method":
            return METHODS.get(node.target)
        return FUNCTIONS.get(node.target) or NAMED.get(_qualified(node.target))

    def reads_lines(self, node: fx.Node) -> bool:
        """Whether tensors (N, C, L) that a node is given are images of one row for it."""
        return self._handler_of(node) in START_LINES or any(map(self.is_line, node.all_input_nodes))

    def _call(self, handler: Handler, node: fx.Node, *args: object, **kwargs: object) -> Value:
        self.as_images = handler in OF_LINES and any(map(self.is_line, node.all_input_nodes))
        try:
            value = _called(handler, self, *args, **kwargs)
        finally:
            lines, self.as_images = self.as_images, False
        if not lines:
            return value
        return [_as_line(part) for part in value] if isinstance(value, list) else _as_line(value)

    def _input(self, node: fx.Node) -> Value:
        return self.external(len(self.shapes[node]))

    def external(self, rank: int) -> Step | Respelled:
        """An input of the plan for tensors of so many dimensions."""
        step = Step(Op.INPUT, settings={"rank": rank, "channels": ANY})
        self.inputs.append(step)
        return _as_line(step) if rank == 3 else step

    def _output(self, value: object) -> Step:
        if not isinstance(value, fx.Node):
            raise Unsupported("the network gives several values; a plan of this version gives one tensor")
        step = self.leaving(value) or self.step(value)
        if step.op is Op.INPUT:
            raise Unsupported("the network computes nothing")
        return step

    def _is_alias(self, node: fx.Node, value: Value) -> bool:
        """Whether eager PyTorch returns its argument, or a view of it."""
        if node.op == "placeholder" or node.target in ("clone", torch.clone):
            return False
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source not in self.values:
            return False
        if isinstance(value, list) or isinstance(self.values[source], list):
            return True
        step = _step_of(value)
        return step.op in _VIEWS or step is _step_of(self.values[source])

    def _overwrite(self, target: fx.Node, step: Value) -> None:
        """After an in-place operation everybody who looks at the target's memory sees the new values."""
        old = self.values[target]
        for node, memory in self.memory.items():
            if memory is not self.memory[target]:
                continue
            if self.values[node] is old:
                self.values[node] = step
            elif self._is_read_later(node):
                raise Unsupported("it writes in place into a tensor that is read in another shape later")

    def _is_read_later(self, node: fx.Node) -> bool:
        return any(self.order[user] > self.order[self.node] for user in node.users)

    def name_of(self, node: fx.Node) -> str:
        """The layer that a node belongs to; for functions outside layers the node's own name."""
        return str(node.target) if node.op == "placeholder" else owner_of(node, self.root) or node.name

    # what handlers ask for

    def place(self, step: Step, name: str = "") -> Step:
        """Give a new step its position, behind all others, and a name: that of the present node."""
        if not step.layers:
            step.position, step.layers = self.placed, [name or self.name_of(self.node)]
            self.placed += 1
        return step

    def value(self, value: object) -> Value:
        """What gives a tensor argument, or several."""
        if not isinstance(value, fx.Node) or is_number(value) or is_constant(value, self.root):
            raise Unsupported("it works on something other than the network's activations")
        if value not in self.values:
            raise _Behind
        return self.values[value]

    def is_line(self, value: object) -> bool:
        """Whether a tensor (N, C, L) is known as an image of one row."""
        found = self.values.get(value) if isinstance(value, fx.Node) else None
        return isinstance(found, Respelled) and found.kind == "line"

    def line(self, value: object) -> Step:
        """The step that gives a tensor argument (N, C, L) as images of one row."""
        found = self.value(value)
        if not isinstance(found, Respelled) or found.kind != "line":
            raise Unsupported(f"its input has shape {self.shape(value)}, or another layout than (N, C, L)")
        return found.step

    def row_or_image(self, value: object) -> Step:
        """The step that gives a tensor argument (N, C, L) or (N, C, H, W)."""
        return self.line(value) if self.is_line(value) else self.image(value)

    def leaving(self, node: fx.Node) -> Step | None:
        """What gives a value to those outside the plan; None where it cannot leave it."""
        found = self.values.get(node)
        if isinstance(found, Step):
            return found
        if not self.is_line(node):
            return None
        if found.step.op is Op.INPUT:
            return found.step
        if node not in self.left:
            self.left[node] = self.place(Step(Op.TO_LINE, [found.step]), self.name_of(node))
        return self.left[node]

    def step(self, value: object) -> Step:
        """The step that gives a tensor argument, shape and all."""
        found = self.value(value)
        if isinstance(found, Step):
            return found
        if self.as_images and self.is_line(value):
            return found.step
        if self.is_line(value):
            raise Unsupported(
                f"its input has shape {self.shape(value)}, not (N, C, H, W): a plan of this version has no "
                "node for it on lines"
            )
        kind = "several tensors" if isinstance(found, list) else f"values laid out as {found.kind}"
        raise Unsupported(f"it works on {kind}: a plan of this version has no node for that")

    def activation(self, value: object, kind: Act, *numbers: float) -> Value:
        """An activation of a tensor in any shape that a plan knows."""
        found = self.value(value)
        if isinstance(found, list) or (isinstance(found, Respelled) and found.kind not in _BY_VALUE):
            found = self.step(value)
        pair = (*map(float, numbers), 0.0, 0.0)[:2]
        return respell(found, Step(Op.ACTIVATION, [_step_of(found)], activation=kind, numbers=pair))

    def shape(self, value: fx.Node) -> list[int]:
        """The shape of a tensor argument for the example inputs."""
        return list(self.shapes[value])

    def larger_shape(self, value: fx.Node) -> list[int]:
        """The shape for larger images; that of the example where the network takes no others."""
        return list(self.record.larger().get(value, self.shapes[value]))

    def image(self, value: object) -> Step:
        """The step that gives a tensor argument with 4 dimensions."""
        step = self.step(value)
        if len(self.shapes[value]) != 4 and not (self.as_images and self.is_line(value)):
            raise Unsupported(f"its input has shape {list(self.shapes[value])}, not (N, C, H, W)")
        return step

    def tensor(self, value: object) -> Tensor | None:
        """A parameter or buffer argument."""
        if value is None or isinstance(value, Tensor):
            return value
        if isinstance(value, fx.Node) and is_constant(value, self.root):
            return self._constant(value)
        raise Unsupported("its weights are computed in the forward from the network's input")

    def _constant(self, node: fx.Node) -> Tensor:
        """The value of a node that depends on parameters alone."""
        if node not in self.constants:
            self.constants[node] = self._computed(node)
        return self.constants[node]

    def _computed(self, node: fx.Node) -> Tensor:
        if node.op == "get_attr":
            path, _, name = node.target.rpartition(".")
            return getattr(self.root.get_submodule(path), name)
        if is_kind(node):
            return _KINDS[node.args[1]]
        args, kwargs = (fx.node.map_arg(part, self._constant) for part in (node.args, node.kwargs))
        with torch.no_grad():
            if node.op == "call_method":
                value = getattr(args[0], node.target)(*args[1:], **kwargs)
            else:
                value = node.target(*args, **kwargs)
        if not isinstance(value, (Tensor, torch.dtype, torch.device)):
            raise Unsupported("it computes something other than one tensor from its parameters")
        return value

    def kind(self, node: fx.Node) -> torch.dtype | torch.device:
        """What a forward asks of a tensor: its dtype or device."""
        if not is_kind(node):
            raise Unsupported(
                f"it becomes what '{node.name}' is: a plan knows dtypes and devices of tensors only"
            )
        return self._constant(node)

    def holder(self, value: object) -> str:
        """The name of the layer that a parameter or buffer argument belongs to."""
        return value.target.rpartition(".")[0] if isinstance(value, fx.Node) else ""

    def features(self, value: fx.Node) -> int:
        """Values per image."""
        return math.prod(self.shapes[value][1:])

    def channel_number(self, value: object) -> int:
        """A number that a forward computes from numbers of channels, which are the same for all inputs."""
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, fx.Node):
            found = dimension_of(value)
            if found is not None and found[1] in (1, 1 - len(self.shapes[found[0]])):
                return self._channels_of(found[0])
            if value.target in _ARITHMETIC:
                return value.target(*map(self.channel_number, value.args))
        raise Unsupported(_COMPUTED)

    def _channels_of(self, value: fx.Node) -> int:
        if len(self.shapes[value]) not in (2, 4) and not self.is_line(value):
            raise Unsupported(_COMPUTED)
        return self.shapes[value][1]

    def is_batch_size(self, value: object) -> bool:
        """Whether an argument is the number of images, as x.size(0) or x.shape[0] give it."""
        found = dimension_of(value)
        step = self.values.get(found[0]) if found is not None and found[1] == 0 else None
        return step is not None and step not in self.free_inputs


def is_constant(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node depends on parameters and buffers alone."""
    waiting, seen, found = [node], set(), False
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_kind(node):
            continue
        if node.op == "get_attr" and not is_number(node):
            found = True
            continue
        function = node.op in ("call_function", "call_method") and not is_number(node)
        if not function or not node.all_input_nodes or writes_in_place(node, root) or _draws(node):
            return False
        waiting.extend(node.all_input_nodes)
    return found


def _called(handler: Handler, *args: object, **kwargs: object) -> Value:
    """A handler's value; torch's functions have arguments that no plan knows."""
    try:
        inspect.signature(handler).bind(*args, **kwargs)
    except TypeError as error:
        raise Unsupported(f"it is called with arguments that a plan does not know: {error}") from error
    try:
        return handler(*args, **kwargs)
    except TypeError as error:  # of arithmetic with a size, where a handler knows numbers
        if any(isinstance(arg, fx.Node) and is_number(arg) for arg in (*args, *kwargs.values())):
            raise Unsupported(_COMPUTED) from error
        raise


def _draws(node: fx.Node) -> bool:
    """Whether a function gives other values at every call."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in _RANDOM


def is_kind(node: fx.Node) -> bool:
    """Whether a node is the dtype or device of a tensor: those of all values in a plan are the same."""
    return node.target is getattr and node.args[1] in _KINDS


def side_of(value: object, dims: tuple[int, int]) -> fx.Node | None:
    """The tensor of which a number is the size in one of these dimensions."""
    found = dimension_of(value)
    return found[0] if found is not None and found[1] in dims else None


def numbers(value: object, what: str) -> tuple[int, ...]:
    """Plain numbers from an argument that is one or a pair of them."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not all(isinstance(v, int) for v in values):
        raise Unsupported(f"its {what} is computed in the forward: write it as a number")
    return values * 2 if len(values) == 1 else values


def pair_settings(name: str, value: object) -> dict[str, int]:
    h, w = numbers(value, name)
    return {f"{name}_h": h, f"{name}_w": w}


def _qualified(function: object) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}"


def what_is(node: fx.Node, root: nn.Module) -> str:
    """The class of a layer, the name of a function or method."""
    if node.op == "call_module":
        return type(module_of(node, root)).__name__
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    return getattr(node.target, "__name__", str(node.target))
