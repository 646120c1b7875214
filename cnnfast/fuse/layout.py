"""Fused calls give channels_last tensors; code that was written for the usual layout must not notice.

`x.view(n, -1)` fails on them. In a generated forward it becomes x.reshape; where values reach a forward that
stays as it is, they are copied into the usual layout, unless separate layers give channels_last as well.
"""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.fuse import runtime
from cnnfast.fuse.kinds import activation_of, is_written, module_of, why_not_plain
from cnnfast.fuse.number_nodes import is_number
from cnnfast.fuse.tracing import is_layer, is_ours

_AS_RESHAPE = {"view": "reshape", "view_as": "reshape_as"}
_VIEWS_OF_ROWS = (
    *("view", "view_as", "reshape", "reshape_as", "flatten", "ravel", "contiguous"),
    *(torch.reshape, torch.flatten, torch.ravel),
)
_LOOK_AT_MEMORY = ("as_strided", "stride", "is_contiguous", torch.as_strided)
_KEEP_LAYOUT = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.imul),
    *(torch.add, torch.mul, torch.cat, torch.clone, F.dropout, F.dropout2d, F.batch_norm, F.silu, F.gelu),
    *(F.hardswish, F.relu6, F.leaky_relu, F.elu, torch.tanh),
)
_LOSE_LAYOUT = (nn.Flatten, nn.Unflatten, nn.Linear, nn.RNNBase, nn.MultiheadAttention, nn.Fold, nn.Unfold)


def views_as_reshapes(graph: fx.Graph, root: nn.Module, fused: set[fx.Node]) -> None:
    """Replace x.view(sizes) by x.reshape(sizes), which is the same where a view is possible.

    Where a view is written into, the write has to reach x: then x is copied into the usual layout first. So
    it is where strides are asked for.
    """
    images = _images(graph, root, fused)
    for node in list(graph.nodes):
        if node.op not in ("call_method", "call_function") or not node.all_input_nodes:
            continue
        source = node.all_input_nodes[0]
        written = node.target in _VIEWS_OF_ROWS and is_written(node, root)
        if source in images and (written or node.target in _LOOK_AT_MEMORY):
            with graph.inserting_after(source):
                rows = graph.call_function(runtime.in_rows, (source,))
            source.replace_all_uses_with(rows, delete_user_cb=lambda user, rows=rows: user is not rows)
            images.remove(source)
        elif node.op == "call_method" and node.target in _AS_RESHAPE and _has_sizes(node) and not written:
            node.target = _AS_RESHAPE[node.target]


def _has_sizes(node: fx.Node) -> bool:
    """Whether a view is one of sizes, not of another dtype."""
    return node.target == "view_as" or not any(isinstance(arg, torch.dtype) for arg in node.args)


def rows_for_kept_forwards(
    graph: fx.Graph, root: nn.Module, fused: set[fx.Node], inner: bool, any_layout: tuple[type, ...] = ()
) -> None:
    """Give images the layout of separate layers where they enter a module that stays, or leave an inner unit.

    any_layout: modules that read both.
    """
    images = _images(graph, root, fused)
    passing = images | {node for node in graph.nodes if isinstance(module_of(node, root), any_layout)}
    for node in list(graph.nodes):
        kept = _is_kept(node, root) and not isinstance(module_of(node, root), any_layout)
        if kept or (inner and node.op == "output"):
            for image in images.intersection(node.all_input_nodes):
                with graph.inserting_before(node):
                    rows = graph.call_function(runtime.as_separate_layers, (image, _origins(image, passing)))
                node.replace_input_with(image, rows)


def _is_kept(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node calls code other than that of torch.nn."""
    if node.op != "call_module":
        return False
    module = module_of(node, root)
    return not is_layer(module) or (not is_ours(module) and why_not_plain(module) is not None)


def _images(graph: fx.Graph, root: nn.Module, fused: set[fx.Node]) -> set[fx.Node]:
    """The fused calls, and what passes their layout on."""
    images = set(fused)
    for node in graph.nodes:
        if images.intersection(node.all_input_nodes) and not is_number(node) and _keeps_layout(node, root):
            images.add(node)
    return images


def _origins(image: fx.Node, passing: set[fx.Node]) -> list[fx.Node]:
    """The values outside `passing` that it comes from: separate layers hand on the layout of these."""
    origins, seen, left = {}, set(), [image]
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in passing:
            left.extend(reversed(_handed_on(node)))
        else:
            origins[node] = None
    return list(origins)


def _handed_on(node: fx.Node) -> list[fx.Node]:
    """The images that an operation takes, not its weights and numbers."""
    first = node.args[0] if node.args else None
    return [
        part for part in (first if isinstance(first, list | tuple) else [first]) if isinstance(part, fx.Node)
    ]


def _keeps_layout(node: fx.Node, root: nn.Module) -> bool:
    if activation_of(node, root) is not None:
        return True
    if node.op == "call_module":
        layer = module_of(node, root)
        return is_layer(layer) and not isinstance(layer, _LOSE_LAYOUT)
    return node.op == "call_function" and node.target in _KEEP_LAYOUT
