"""Which nodes of a graph run as plans: those that lower, in parts that are worth a call."""

from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from cnnfast.fuse.number_nodes import is_number
from cnnfast.plan.fold import fold
from cnnfast.plan.lowering.context import is_constant, is_kind, steps_of
from cnnfast.plan.nodes import ANY_TILE, DIRECT, Op, Plan
from cnnfast.plan.parts.lowering import PartLowering
from cnnfast.plan.parts.partition import Part, levels, operands, parts_of, read_outside
from cnnfast.plan.record import Record
from cnnfast.plan.steps import Step, reachable, to_plan

_SMALLEST = 3  # steps of a part without a convolution or linear layer
_VIEWS = (Op.INPUT, Op.FLATTEN, Op.RESHAPE_IMAGE, Op.SLICE, Op.TO_IMAGE, Op.TO_LINE)
TOO_SMALL = (
    "a plan of its own would cost more than it saves: there is too little beside it that a plan of this "
    "version has a node for"
)


@dataclass(frozen=True, eq=False)
class PlannedPart:
    """A part as a plan: what it reads, and which nodes' values it gives, one output after another."""

    part: Part
    plan: Plan
    weights: Tensor
    names: list[str]  # of the plan's nodes
    sources: list[fx.Node]
    results: list[list[fx.Node]]  # by output; several nodes may stand for one value
    passed: dict[fx.Node, fx.Node]  # nodes that give what they read


@dataclass
class Cut:
    """What became of a graph."""

    parts: list[PlannedPart] = field(default_factory=list)
    level: dict[fx.Node, int] = field(default_factory=dict)
    live: set[fx.Node] = field(default_factory=set)  # eager nodes that the output needs, and the output
    reasons: dict[fx.Node, str] = field(default_factory=dict)  # why a node is eager


def cut(
    graph: fx.Graph,
    root: nn.Module,
    record: Record,
    closed: dict[str, str],
    runs_before: dict[fx.Node, list[fx.Node]],
    winograd: bool,
) -> Cut:
    """Give up nodes until every part that is left lowers and is worth it."""
    planned = {node for node in graph.nodes if _is_candidate(node, root)}
    constants = {node for node in graph.nodes if is_constant(node, root)}
    reasons: dict[fx.Node, str] = {}
    while True:
        level = levels(graph, planned, runs_before, constants)
        live = _live(graph, planned, constants)
        parts = [part for part in parts_of(graph, planned, level) if read_outside(part, live)]
        lowered = [(part, PartLowering(graph, root, record, closed).walk(part.nodes)) for part in parts]
        given_up: dict[fx.Node, str] = {}
        for part, low in lowered:
            given_up |= low.reasons or _not_worth(part, low, live)
        if not given_up:
            given_up = _split_values(lowered, live, record)
        if not given_up:
            made = [_planned(part, low, live, winograd) for part, low in lowered]
            return Cut(made, level, live, reasons)
        reasons |= given_up
        planned -= given_up.keys()


def _is_candidate(node: fx.Node, root: nn.Module) -> bool:
    called = node.op in ("call_module", "call_function", "call_method") and not is_number(node)
    collects = isinstance(node.target, type)  # OrderedDict, a named tuple: results are collected eagerly
    return called and not is_kind(node) and not collects and not is_constant(node, root)


def _live(graph: fx.Graph, planned: set[fx.Node], constants: set[fx.Node]) -> set[fx.Node]:
    """All nodes that the output needs; sizes and weights that only plans ask for are left out."""
    output = next(node for node in graph.nodes if node.op == "output")
    live, waiting = {output}, [output]
    while waiting:
        node = waiting.pop()
        inside = node in planned
        for source in operands(node) if inside else node.all_input_nodes:
            if source not in live and not (inside and source in constants):
                live.add(source)
                waiting.append(source)
    return live


def _not_worth(part: Part, low: PartLowering, live: set[fx.Node]) -> dict[fx.Node, str]:
    given = [low.values[node] for node in read_outside(part, live)]
    results = [step for value in given for step in steps_of(value)]
    work = [step for step in reachable(results) if step.op not in _VIEWS]
    if len(work) >= _SMALLEST or any(step.op in (Op.CONV2D, Op.LINEAR) for step in work):
        return {}
    return dict.fromkeys(part.nodes, TOO_SMALL)


def _split_values(
    lowered: list[tuple[Part, PartLowering]], live: set[fx.Node], record: Record
) -> dict[fx.Node, str]:
    """Nodes whose value cannot leave a plan: tuples, and other than float32."""
    return {
        node: "it gives something other than one float32 tensor to layers that stay eager"
        for part, low in lowered
        for node in read_outside(part, live)
        if low.leaving(node) is None or str(record.dtypes.get(node)) != "torch.float32"
    }


def _planned(part: Part, low: PartLowering, live: set[fx.Node], winograd: bool) -> PlannedPart:
    outputs: dict[Step, list[fx.Node]] = {}
    passed: dict[fx.Node, fx.Node] = {}
    for node in read_outside(part, live):
        step = low.leaving(node)
        if step in low.sources:
            passed[node] = low.sources[step]
        else:
            outputs.setdefault(step, []).append(node)
    steps = fold(list(outputs))
    for step in reachable(steps):
        if step.op is Op.CONV2D:
            step.settings |= {"largest_tile": ANY_TILE if winograd else DIRECT, "tuned": 0}
    read = [step for step in reachable(steps) if step in low.sources]
    plan, weights, names = to_plan(read, steps)
    sources = [low.sources[step] for step in read]
    return PlannedPart(part, plan, weights, names, sources, list(outputs.values()), passed)
