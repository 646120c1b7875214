"""Changing the order of layers where values and gradients stay, so that more of them can be fused."""

from collections.abc import Callable

from torch import fx, nn

from cnnfast.fuse.kinds import activation_of, layer_name, module_of, why_not_plain
from cnnfast.fuse.starts import start_of, why_not_function, why_not_settings


def relu_before_max_pool(graph: fx.Graph, root: nn.Module, chosen: Callable[[str, nn.Module], bool]) -> None:
    """relu(max_pool(x)) becomes max_pool(relu(x)) where x is what a convolution or a batch norm gives.

    The largest value of a window is the same either way, and so is its gradient: a window without positive
    values has none.
    """
    for relu in list(graph.nodes):
        pool = _only_source(relu) if activation_of(relu, root) == "relu" else None
        source = _only_source(pool) if pool is not None and start_of(pool, root) == "max_pool" else None
        if source is None or start_of(source, root) not in ("conv", "bn"):
            continue
        if _are_plain((source, pool, relu), root, chosen):
            relu.replace_all_uses_with(pool)
            relu.args = (source, *relu.args[1:])
            pool.args = (relu, *pool.args[1:])
            pool.prepend(relu)


def without_identities(
    graph: fx.Graph, root: nn.Module, chosen: Callable[[str, nn.Module], bool]
) -> set[nn.Module]:
    """Take out the calls of nn.Identity, placeholders of dropout or blur between a layer and its activation.

    Returns the layers, whose forward is not called any more.
    """
    passed = set()
    for node in list(graph.nodes):
        layer = module_of(node, root) if node.op == "call_module" else None
        plain = type(layer) is nn.Identity and why_not_plain(layer) is None and chosen(node.target, layer)
        if plain and len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            passed.add(layer)
    return passed


def _only_source(node: fx.Node) -> fx.Node | None:
    """The value that a node reads, if nobody else does."""
    source = node.args[0] if node.args else None
    return source if isinstance(source, fx.Node) and len(source.users) == 1 else None


def _are_plain(nodes: tuple[fx.Node, ...], root: nn.Module, chosen: Callable[[str, nn.Module], bool]) -> bool:
    for node in nodes:
        module = module_of(node, root)
        if not chosen(layer_name(node), module if module is not None else root):
            return False
        if module is None and start_of(node, root) and why_not_function(node) is not None:
            return False
        if module is not None and (why_not_settings(module) or why_not_plain(module)) is not None:
            return False
    return True
