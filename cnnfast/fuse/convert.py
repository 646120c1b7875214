"""Fusing a network unit by unit: what traces as a whole becomes one generated forward."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import fx, nn

from cnnfast.fuse.foreign import OpenedNorms, is_standardised, pads_to_same
from cnnfast.fuse.functions import mark_functions, stand_in
from cnnfast.fuse.given import Call, Given, given_by_default, source_for_given
from cnnfast.fuse.groups import Group
from cnnfast.fuse.kinds import layer_name, module_of
from cnnfast.fuse.layout import rows_for_kept_forwards, views_as_reshapes
from cnnfast.fuse.match import Match, find_groups
from cnnfast.fuse.match_chains import join_chains
from cnnfast.fuse.module import FusedModule
from cnnfast.fuse.own_thread import OwnThreadTracer
from cnnfast.fuse.reorder import relu_before_max_pool, without_identities
from cnnfast.fuse.rewrite import kernel_name, replace_groups
from cnnfast.fuse.shells import (
    Generated,
    Guarded,
    Inlined,
    become,
    mark_read,
    mark_swallowed,
    original_class,
    source_of,
    source_of_two,
)
from cnnfast.fuse.signature import NeedsExample, parameters_of
from cnnfast.fuse.single import fuse_single, put_in_place, why_not_single
from cnnfast.fuse.tracing import NotTraceable, Trace, is_layer, is_ours, trace_paths
from cnnfast.fuse.walked import walked
from cnnfast.report import ALREADY, DROPPED, EAGER, FUSED, Row

_NAMED = 3  # modules that a note names
_NO_WORK = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Unflatten)


@dataclass(frozen=True)
class Unit:
    """A module that got a generated forward, with its graphs before and after.

    traced: the forward as it was written down, where `eager` is that with layers taken apart or left out.
    training: whether that is the path which the forward takes in training alone.
    given: the calls that the graphs are for, where it is not all.
    """

    path: str
    eager: fx.Graph
    fused: fx.Graph
    values: dict[str, tuple[str, str]]  # by layer: the node that has its value before, and after
    traced: fx.Graph | None = None
    training: bool = False
    given: Given | None = None


@dataclass(frozen=True)
class _Forward:
    """A graph of a module's forward, and what is to become of it.

    written_down: the graph as it was traced. opened: modules that were stepped into. passed: layers that do
    nothing.
    """

    traced: Trace
    written_down: fx.Graph
    groups: list[Group]
    opened: set[nn.Module]
    passed: set[nn.Module]

    @property
    def graph(self) -> fx.Graph:
        return self.traced.graph

    @property
    def calls(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "call_module"]


class Converter:
    """Fuses a tree of shells in place; collects a row for each layer.

    refused: by path, why a forward has to stay that could be traced.
    calls: by path, what modules are called with, as far as that is known.
    """

    def __init__(
        self,
        root: nn.Module,
        chosen: Callable[[str, nn.Module], bool],
        refused: dict[str, str] | None = None,
        calls: dict[str, Call] | None = None,
    ):
        self.root, self.chosen, self.refused, self.calls = root, chosen, refused or {}, calls or {}
        self.rows: dict[str, Row] = {}
        self.units: list[Unit] = []
        self.noted: dict[tuple[str, str], list[str]] = {}  # paths, by class and what is said of them
        self.functions_fused: dict[str, bool] = {}  # of modules whose forward calls convolutions as functions
        self.beside_graphs = False  # whether what is fused here runs where a graph does not serve
        self.joins_chains = True  # values between the groups of a chain are not in its graph
        self._seen: set[nn.Module] = set()
        self._singles: dict[nn.Module, str] = {}  # layers that run by themselves, and their operators

    def run(self) -> list[Row]:
        self.convert(self.root, "")
        if not isinstance(self.root, FusedModule):
            become(self.root, (FusedModule,))
        order = {name: i for i, (name, _) in enumerate(self.root.named_modules())}
        return sorted(self.rows.values(), key=lambda row: order.get(row.name, len(order)))

    @property
    def notes(self) -> list[str]:
        return [_note(kind, paths, text) for (kind, text), paths in self.noted.items()]

    def note(self, module: nn.Module, path: str, text: str) -> None:
        """Say something of a module in the report."""
        self.noted.setdefault((original_class(module).__name__, text), []).append(path)

    def convert(self, module: nn.Module, path: str) -> None:
        if module in self._seen:
            return
        self._seen.add(module)
        if is_layer(module):  # the whole network is one layer
            reason = "a layer alone is not fused: put it into a network, nn.Sequential(layer)"
            ours = is_ours(module)
            self.rows[path] = _row(path, module, ALREADY if ours else EAGER, reason="" if ours else reason)
            return
        if path in self.refused:
            self.keep_forward(module, path, self.refused[path])
            return
        try:
            given, traces = self.traced(module, path)
        except NotTraceable as error:
            self.keep_forward(module, path, str(error))
            return
        forwards = [self.grouped(module, path, traced) for traced in traces]
        for name in {node.target: None for made in forwards for node in made.calls}:
            if not is_layer(module.get_submodule(name)):
                self.convert(module.get_submodule(name), _join(path, name))
        if any(made.groups for made in forwards):
            self.generate(module, path, forwards, given)

    def traced(self, module: nn.Module, path: str) -> tuple[Given | None, list[Trace]]:
        """The graphs of a forward, and the calls that they are for where it is not all.

        They are for all sizes where that is possible. Raises NotTraceable.
        """
        call = self.calls.get(path)
        try:
            given = given_by_default(original_class(module))
            if given is not None and call is not None:
                given = call.given
            return given, trace_paths(module, is_layer, given)
        except NotTraceable as error:
            if isinstance(error, NeedsExample) and not self.calls:
                raise NotTraceable(f"{error} (with example_inputs, fuse follows sizes)") from None
            if call is None or self.beside_graphs:  # beside a graph a second one takes as long to find
                raise
            try:
                traces = trace_paths(module, is_layer, call.given, call.arguments())
                return call.with_sizes(traced.sizes for traced in traces if traced.sizes is not None), traces
            except NotTraceable:
                raise error from None

    def grouped(self, module: nn.Module, path: str, traced: Trace) -> "_Forward":
        """A graph with the groups of layers that fused operators serve; a row for each layer."""
        written_down = fx.Graph()
        written_down.output(written_down.graph_copy(traced.graph, {}))
        chosen = lambda name, layer: self.chosen(_join(path, name), layer)  # noqa: E731
        mark_functions(traced.graph, module)
        passed = without_identities(traced.graph, module, chosen)
        norms = OpenedNorms(traced.graph, module)
        relu_before_max_pool(traced.graph, module, chosen)
        match = find_groups(traced.graph, module, chosen)
        norms.close({node for group in match.groups for node in group.nodes})
        groups = join_chains(traced.graph, module, match.groups) if self.joins_chains else match.groups
        rows = self.rows_of(module, path, traced.graph, match, passed)
        self.tell_chains(rows, path, groups)
        self.add_rows(rows)
        return _Forward(traced, written_down, groups, _opened(module, traced.graph), passed)

    def keep_forward(self, module: nn.Module, path: str, reason: str) -> None:
        """Fuse the children of a module whose forward stays as it is."""
        self.note(module, path, f"keeps its own forward: {reason}. Its children were fused one by one.")
        for name, child in nearest(module, path):
            if is_layer(child):
                self.rows[name] = self.keep_layer(child, name, reason)
            else:
                self.convert(child, name)

    def keep_layer(self, layer: nn.Module, name: str, reason: str) -> Row:
        """A layer that a forward calls which stays: some can run by themselves."""
        if not self.chosen(name, layer):
            return _row(name, layer, EAGER, reason="left out by filter_fn")
        why = why_not_single(layer, batch_norms=self.beside_graphs)
        if why is not None:
            return _row(name, layer, EAGER, reason=why or f"called by a forward that stays: {reason}")
        if layer not in self._seen:
            self._seen.add(layer)
            made = fuse_single(layer)
            self._singles[layer] = made.operator
            if not self.beside_graphs:
                eager = OwnThreadTracer().trace(layer)
                before = next(node for node in eager.nodes if node.op == "output").args[0].name
                self.units.append(Unit(name, eager, made.fused, {name: (before, made.value)}))
            put_in_place(made, layer)
        runs_as = f"cnnfast.ops.{self._singles[layer]}: {name}"
        return Row(name, original_class(layer).__name__, FUSED, runs_as)

    def generate(self, module: nn.Module, path: str, forwards: list["_Forward"], given: Given | None) -> None:
        """Give the module a forward that calls the fused operators, or one for each mode."""
        swallowed = {layer for made in forwards for layer in self.rewrite(module, path, made, given)}
        opened = set.intersection(*(made.opened for made in forwards))
        passed = set.intersection(*(made.passed for made in forwards))
        if given is not None:
            self.serve_other_calls(module, path, given)
        source, names = _source(module, [made.graph for made in forwards], given)
        become(module, (Guarded if path else FusedModule,), source, names)
        alone = len(forwards) == 1 and given is None
        for container in opened:  # one of two graphs does without its forward, torch.jit does not
            if not isinstance(container, Generated):
                become(container, (Inlined if alone else Guarded,))
        mark_swallowed(module, swallowed | opened | passed, all_calls=given is None)
        read: dict[str, set[str]] = {}
        for made in forwards:
            for name, attributes in made.traced.read.items():
                read[name] = read.get(name, set()) | attributes
        mark_read(module, read, all_calls=given is None)

    def serve_other_calls(self, module: nn.Module, path: str, given: Given) -> None:
        """The forward stays beside the generated one, and its children are fused one by one for it."""
        calls = f"is fused for calls with {given.words()}"
        self.note(module, path, f"{calls}; others run its own forward, whose children are fused one by one.")
        others = Converter(self.root, self.chosen, self.refused, self.calls)
        others.beside_graphs = True
        others.units, others._seen, others._singles = self.units, self._seen, self._singles
        for name, child in nearest(module, path):
            if is_layer(child):
                others.keep_layer(child, name, "")
            else:
                others.convert(child, name)

    def rewrite(self, module: nn.Module, path: str, made: "_Forward", given: Given | None) -> set[nn.Module]:
        """Put fused calls into a graph; gives the layers whose work they do."""
        graph, groups = made.graph, made.groups
        eager = fx.Graph()
        eager.output(eager.graph_copy(graph, copies := {}))
        values = {layer_name(node): node for node in graph.nodes if node.op == "call_module"}
        starts = [(part.first, group) for group in groups for part in _parts(group)]
        values |= {layer_name(node): group.last for node, group in starts}
        before = {name: copies[node].name for name, node in values.items()}
        swallowed = {module_of(node, module) for group in groups for node in group.nodes} - {None}
        swallowing = {node for group in groups for node in group.nodes} - {node for node, _ in starts}
        for node in swallowing:
            values.pop(layer_name(node), None)
        calls_of = replace_groups(graph, module, groups)
        calls = set(calls_of.values())
        views_as_reshapes(graph, module, calls)
        rows_for_kept_forwards(graph, module, calls, inner=bool(path))
        after = {name: calls_of.get(node, node).name for name, node in values.items()}
        layers = {_join(path, name): (before[name], after[name]) for name in after}
        training = bool(made.traced.training)
        self.units.append(Unit(path, eager, graph, layers, made.written_down, training, given))
        return swallowed

    def add_rows(self, rows: dict[str, Row]) -> None:
        """Of two paths of a forward the row of the one that does less for a layer that it calls."""
        order = (EAGER, FUSED, ALREADY, DROPPED)
        for name, row in rows.items():
            present = self.rows.get(name, row)
            self.rows[name] = min(row, present, key=lambda row: order.index(row.status))

    def rows_of(
        self, module: nn.Module, path: str, graph: fx.Graph, match: Match, passed: set[nn.Module]
    ) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        grouped = {node for group in match.groups for node in group.nodes}
        for node in graph.nodes:
            if stand_in(node) is not None:
                stack = list(node.meta.get("nn_module_stack", {}).values())
                caller = _join(path, stack[-1][0] if stack else "")
                self.functions_fused[caller] = node in grouped and self.functions_fused.get(caller, True)
        for group in match.groups:
            for row in _group_rows(module, path, group):
                rows[row.name] = row
        calls = {node.target for node in graph.nodes if node.op == "call_module"}
        for name, layer in module.named_modules():
            full = _join(path, name)
            inside = any(name.startswith(call + ".") for call in calls)  # and gets a row there
            if is_layer(layer) and full not in rows and not inside:
                reason = "it gives what it takes" if layer in passed else match.reasons.get(name, "")
                rows[full] = _row_of_rest(full, layer, name in calls or layer in passed, reason)
        parts = dict(module.named_modules())
        for name, reason in match.reasons.items():
            if name not in parts:
                rows[_join(path, name)] = Row(_join(path, name), "function", EAGER, reason=reason)
        return rows

    def tell_chains(self, rows: dict[str, Row], path: str, groups: list[Group]) -> None:
        """Say of each group of a chain, which has a row of its own, what it is a part of."""
        for chain in (group for group in groups if group.kind == "chain"):
            names = [_join(path, layer_name(part.first)) for part in _parts(chain)]
            together = f"; while training in bfloat16 one cnnfast.ops.inception: {' + '.join(names)}"
            for name in names:
                rows[name] = replace(rows[name], runs_as=rows[name].runs_as + together)


def _source(module: nn.Module, graphs: list[fx.Graph], given: Given | None) -> tuple[str, dict[str, object]]:
    cls, sources = original_class(module), [source_of(graph) for graph in graphs]
    if len(sources) == 1:
        source, names = sources[0]
    else:
        arguments = [p.name for p in parameters_of(cls)] if given is None else [a for a, _ in given.taken]
        source, names = source_of_two(*sources, arguments)
    return (source, names) if given is None else source_for_given(source, names, cls, given)


def _note(kind: str, paths: list[str], text: str) -> str:
    """What is said of one module, or of several of a class."""
    if paths == [""]:
        return f"{kind} {text}"
    named = ", ".join(f"'{path}'" for path in paths[:_NAMED])
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return f"{named}{more} ({kind}) {'each ' if len(paths) > 1 else ''}{text}"


def _parts(group: Group) -> list[Group]:
    """Groups with rows of their own: those of a chain, of which the last value is all that there is."""
    return group.branches[0] if group.kind == "chain" else [group]


def _row_of_rest(name: str, layer: nn.Module, called: bool, reason: str) -> Row:
    """A layer that is in no group."""
    if not called:
        return _row(name, layer, DROPPED, reason="the forward does not call it")
    if is_ours(layer):
        return _row(name, layer, ALREADY, runs_as=f"cnnfast.nn.{type(layer).__name__}")
    return _row(name, layer, DROPPED if type(layer) in _NO_WORK else EAGER, reason=reason)


def _group_rows(module: nn.Module, path: str, group: Group) -> list[Row]:
    names = [_join(path, layer_name(node)) if node.op == "call_module" else node.name for node in group.nodes]
    runs_as = f"cnnfast.ops.{kernel_name(group)}: {_members(group, names)}{_in_front(group, module)}"
    rows = []
    for name, node in zip(names, group.nodes, strict=True):
        layer = module_of(node, module)
        if layer is not None and node.op == "call_module":
            rows.append(
                _row(name, layer, FUSED, runs_as=runs_as if node is group.first else f"with {names[0]}")
            )
        elif node is group.first:
            rows.append(Row(_join(path, name), "function", FUSED, runs_as))
    return rows


def _in_front(group: Group, module: nn.Module) -> str:
    """What torch does before the fused call."""
    layer = module_of(group.layer or group.first, module)
    words = ", weight standardised by torch at every call" if is_standardised(layer) else ""
    return words + (", padded by torch where opposite sides differ" if pads_to_same(layer) else "")


def _members(group: Group, names: list[str]) -> str:
    """All nodes of a group; of a block the layers with weights, branch by branch."""
    if not group.branches:
        return " + ".join(names)
    name_of = dict(zip(group.nodes, names, strict=True))
    branches = [[name_of[part.layer or part.first] for part in branch] for branch in group.branches]
    return " | ".join(" + ".join(branch) for branch in branches)


def _row(name: str, layer: nn.Module, status: str, runs_as: str = "", reason: str = "") -> Row:
    return Row(name, type(layer).__name__, status, runs_as, reason)


def _opened(module: nn.Module, graph: fx.Graph) -> set[nn.Module]:
    """The modules below `module` that were stepped into."""
    closed = [node.target for node in graph.nodes if node.op == "call_module"]
    opened = set()
    for name, part in module.named_modules():
        inside = any(name == call or name.startswith(call + ".") for call in closed)
        if name and not inside and not is_layer(part):
            opened.add(part)
    return opened


def nearest(module: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """Direct children; in the place of lists and dicts of modules, which have no forward, and of a
    Sequential whose forward is not called, the children of these.
    """
    found, steps = [], walked(module)
    for name, child in module.named_children():
        opened = isinstance(child, (nn.ModuleList, nn.ModuleDict))
        opened |= type(child) is nn.Sequential and name in steps
        name = _join(path, name)
        if opened:
            found.extend(nearest(child, name))
        else:
            found.append((name, child))
    return found


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
