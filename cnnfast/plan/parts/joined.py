"""Plans and eager layers as one module with a generated forward."""

import copy
import operator
from itertools import takewhile
from typing import Any

import torch
from torch import fx, nn

from cnnfast.fuse.layout import rows_for_kept_forwards, views_as_reshapes
from cnnfast.fuse.shells import Generated, become, own_copy, source_of
from cnnfast.fuse.sizes import Sizes, refuse_other_sizes
from cnnfast.fuse.tracing import is_fixed
from cnnfast.plan.codec import encode
from cnnfast.plan.network import JoinedNet, PlanCall, refuse_gradients
from cnnfast.plan.parts.cut import Cut
from cnnfast.plan.parts.named_results import as_dict_when_scripted
from cnnfast.plan.record import Record, with_tensors

EAGER = "eager"  # the child that holds what stays eager, under its old names


def join(
    graph: fx.Graph,
    root: nn.Module,
    record: Record,
    cut: Cut,
    replaced: dict[str, nn.Module],
    sizes: Sizes | None = None,
    plain: dict[fx.Node, object] | None = None,
) -> JoinedNet:
    """The network of a graph that was cut; replaced: modules to call in the place of others, by path.

    Eager layers are deep copies. sizes: of the inputs for which the graph holds, others are an error; plain:
    None, flags, words and numbers among the inputs, of which all but numbers have to be the same again.
    """
    net = JoinedNet()
    made, env, calls = fx.Graph(), {}, set()
    _copy_inputs(graph, record, made, env, plain or {})
    if sizes is not None:
        tensors = [env[node] for node in graph.nodes if node.op == "placeholder" and node in record.shapes]
        made.call_function(refuse_other_sizes, (tensors, list(sizes.program), sizes.words))
    for node, value in (plain or {}).items():
        if is_fixed(value):
            made.call_function(refuse_other_value, (env[node], str(value), str(node.target)))
    position = {node: i for i, node in enumerate(graph.nodes)}
    units = [(node, cut.level[node]) for node in graph.nodes if _is_eager(node, cut)]
    units += [(part, part.part.level) for part in cut.parts]
    names = {part: f"plan_{i}" for i, part in enumerate(cut.parts)}

    def turn(unit: tuple) -> tuple[int, int]:
        what, level = unit
        return level, position[what] if isinstance(what, fx.Node) else position[what.part.nodes[0]]

    for unit, _ in sorted(units, key=turn):
        if isinstance(unit, fx.Node):
            env[unit] = made.node_copy(unit, env.__getitem__)
            if unit.op in ("call_module", "get_attr"):
                env[unit].target = f"{EAGER}.{unit.target}"
            continue
        net.add_module(names[unit], PlanCall(unit.weights, encode(unit.plan, unit.weights), unit.names))
        call = made.call_module(names[unit], ([env[source] for source in unit.sources],))
        for i, nodes in enumerate(unit.results):
            value = made.call_function(operator.getitem, (call, i))
            env |= dict.fromkeys(nodes, value)
            calls.add(value)
        env |= {node: env[source] for node, source in unit.passed.items()}
    output = next(node for node in graph.nodes if node.op == "output")
    made.node_copy(output, env.__getitem__)
    net.add_module(EAGER, _eager_parts(made, root, replaced))
    views_as_reshapes(made, net, calls)
    rows_for_kept_forwards(made, net, calls, inner=False, any_layout=(PlanCall, JoinedNet))
    _generate(net, made)
    return net


def refuse_other_value(value: Any, wanted: str, name: str) -> None:
    """RuntimeError for another value of an argument that decided a path."""
    if str(value) != wanted:
        raise RuntimeError(
            f"a block was frozen with {name}={wanted}, and its forward may decide by it: it is not for others"
        )


def _copy_inputs(
    graph: fx.Graph, record: Record, made: fx.Graph, env: dict[fx.Node, fx.Node], plain: dict[fx.Node, object]
) -> None:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    env |= {node: made.node_copy(node) for node in inputs}
    for node in takewhile(plain.__contains__, reversed(inputs)):  # a call may leave them out
        env[node].args = (plain[node],)
    for node in inputs:
        if node in record.shapes:
            made.call_function(refuse_gradients, (env[node],))


def _is_eager(node: fx.Node, cut: Cut) -> bool:
    planned = any(node in part.part.nodes for part in cut.parts)
    return node in cut.live and not planned and node.op not in ("placeholder", "output")


def _eager_parts(made: fx.Graph, root: nn.Module, replaced: dict[str, nn.Module]) -> nn.Module:
    """Copies of the modules and tensors that the new graph asks for, under their old names."""
    holder, memo = nn.Module(), {}
    targets = [
        (node.op, node.target.removeprefix(f"{EAGER}."))
        for node in made.nodes
        if node.op in ("call_module", "get_attr") and node.target.startswith(f"{EAGER}.")
    ]
    for _, path in sorted({target for target in targets if target[0] == "call_module"}):
        module = replaced.get(path) or in_channels_last(own_copy(root.get_submodule(path), memo))
        owner, name = _owner(holder, path)
        owner.add_module(name, module)
    for _, path in sorted({target for target in targets if target[0] == "get_attr"}):
        owner, name = _owner(holder, path)
        if not hasattr(owner, name):
            source_path, _, name = path.rpartition(".")
            tensor = getattr(root.get_submodule(source_path), name)
            owner.register_buffer(name, copy.deepcopy(tensor.detach(), memo))
    for tensor in holder.parameters():
        tensor.requires_grad_(False)
    return holder.eval()


class InRows(nn.Module):
    """A frozen child whose images have the layout that separate layers would have given them."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.training = False

    def forward(self, *inputs: object, **named: object) -> object:
        return with_tensors(torch.Tensor.contiguous, self.network(*inputs, **named))


def in_channels_last(module: nn.Module) -> nn.Module:
    """Weights of convolutions in the layout that eager convolutions of channels_last images ask for."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)) and isinstance(part.weight, nn.Parameter):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)
    return module


def _owner(holder: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that an attribute belongs to, made where it is not there, and the attribute's name."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in holder._modules:
            holder.add_module(parent, nn.Module())
        holder = holder._modules[parent]
    return holder, name


def _generate(net: JoinedNet, graph: fx.Graph) -> None:
    source, names = as_dict_when_scripted(*source_of(graph), graph)
    become(net, (Generated,), source, names, prefix="")
