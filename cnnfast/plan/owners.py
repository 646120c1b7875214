"""Which layer a node of a traced graph does the work of."""

import torch
from torch import fx, nn

from cnnfast.fuse.foreign import is_norm_act
from cnnfast.fuse.kinds import why_not_plain
from cnnfast.fuse.tracing import is_layer, is_ours, torch_ancestor
from cnnfast.plan.record import Record


def is_leaf(module: nn.Module) -> bool:
    """Whether a plan's tracing takes a module as one node: layers whose forward is that of torch.nn."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    if is_norm_act(module):  # its forward says what it is
        return False
    return is_layer(module) and not is_ours(module) and why_not_plain(module) is None


def is_layer_like(module: nn.Module) -> bool:
    """Layers, and subclasses of torch.nn's that hold further modules: batch norms with an activation."""
    if is_layer(module) or is_ours(module):
        return True
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return torch_ancestor(module) is not nn.Module and not isinstance(module, containers)


def owner_of(node: fx.Node, root: nn.Module) -> str | None:
    """The path of the layer that a node belongs to; None for a function of a forward that is no layer's."""
    if node.op == "call_module":
        return str(node.target)
    for path, _ in reversed(list(node.meta.get("nn_module_stack", {}).values())):
        if path and is_layer_like(root.get_submodule(path)):
            return path
    return None


def macs_by_owner(graph: fx.Graph, root: nn.Module, record: Record) -> dict[str, int]:
    """Multiply-adds by layer; those of functions outside layers by the node's name."""
    macs: dict[str, int] = {}
    for node, count in record.macs.items():
        if node.op in ("call_module", "call_function", "call_method"):
            name = owner_of(node, root) or node.name
            macs[name] = macs.get(name, 0) + count
    return macs
