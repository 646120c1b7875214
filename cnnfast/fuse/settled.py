"""Numbers of a traced forward that are the same for all inputs, or for those that it was traced for."""

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.fuse.number_nodes import CONVERSIONS, is_number
from cnnfast.fuse.proxies import NotTraceable
from cnnfast.fuse.same_padding import pads_as_same, same_for_all_sizes, window_of

Number = Callable[[fx.Node], object]


def settle(graph: fx.Graph, root: nn.Module, constant: Number, decided: Number) -> None:
    """Write down as numbers: differences of sizes, such as those of two crops; the channels that parameters
    are given a shape by; and padding of convolutions by what int(), math.ceil() and the like make of sizes.

    constant: the number that a node gives for inputs of any size; decided: that of the example, which then
    is a condition. Both raise NotTraceable.
    """
    left = set()  # what padding is computed from that may stay so
    for node in list(graph.nodes):
        if node.target is F.pad and _pads_convolutions(node, root):
            if all(_is_same(node, user, root) for user in node.users):
                left |= _settle_same(node, root)
    for node in list(graph.nodes):
        if node.target is F.pad and _pads_convolutions(node, root):
            for amount in node.all_input_nodes:
                if amount not in left and _is_converted(amount):
                    _try(_settle_pad, amount, constant, decided)
        if not is_number(node) or not node.users or node in left:
            continue
        if node.target in (operator.sub, operator.neg) or any(map(_shapes_a_parameter, node.users)):
            _try(lambda number: write_number(number, constant(number)), node)
        elif node.op == "call_function" and node.target is not getattr and not node.all_input_nodes:
            write_number(node, node.target(*node.args))  # of settled ones


def write_number(node: fx.Node, number: object) -> None:
    """Put a number in the place of a node."""

    def put(source: fx.Node) -> object:
        return number if source is node else source

    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg(user.args, put), fx.map_arg(user.kwargs, put)


def _try(settle_one: Callable, *args: object) -> None:
    try:
        settle_one(*args)
    except NotTraceable:
        pass


def _settle_pad(amount: fx.Node, constant: Number, decided: Number) -> None:
    try:
        number = constant(amount)
    except NotTraceable:
        number = decided(amount)
    write_number(amount, number)


def _settle_same(pad: fx.Node, root: nn.Module) -> set[fx.Node]:
    """Write down the amounts that are the same for all sizes; what the others are computed from."""
    amounts = [node for node in pad.all_input_nodes if is_number(node)]
    for amount in amounts:
        number = same_for_all_sizes(pad, amount, root)
        if number is not None:
            write_number(amount, number)
    sources, waiting = set(), amounts
    while waiting:
        node = waiting.pop()
        if node not in sources and is_number(node):
            sources.add(node)
            waiting.extend(node.all_input_nodes)
    return sources


def _pads_convolutions(pad: fx.Node, root: nn.Module) -> bool:
    return bool(pad.users) and all(_is_convolution(user, root) for user in pad.users)


def _is_same(pad: fx.Node, conv: fx.Node, root: nn.Module) -> bool:
    window = window_of(conv, root)
    return window is not None and pads_as_same(pad, *window, root)


def _is_convolution(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(root.get_submodule(node.target), nn.Conv2d)
    return node.target in (F.conv2d, torch.conv2d)


def _is_converted(number: fx.Node) -> bool:
    """Whether more than operators made a number of sizes."""
    made = number.op == "call_function" and number.target in CONVERSIONS
    return is_number(number) and (made or any(map(_is_converted, number.all_input_nodes)))


def _shapes_a_parameter(node: fx.Node) -> bool:
    """weight.view(1, C, 1, 1)"""
    return node.op == "call_method" and bool(node.args) and _is_parameter(node.args[0])


def _is_parameter(value: object) -> bool:
    """A parameter or buffer, or another shape of one."""
    if not isinstance(value, fx.Node) or is_number(value):
        return False
    return value.op == "get_attr" or _shapes_a_parameter(value)
