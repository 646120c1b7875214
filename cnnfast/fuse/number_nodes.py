"""Nodes of a graph that stand for plain numbers: sizes, and what a forward computes from them."""

import builtins
import math
import operator

from torch import fx

_ATTRIBUTES = ("shape", "ndim", "training")
_METHODS = ("size", "dim", "numel", "nelement", "stride")
CONVERSIONS = (builtins.int, builtins.float, builtins.max, builtins.min, math.ceil, math.floor)


def is_number(node: fx.Node) -> bool:
    """Whether a node stands for a size or another plain number, not for a tensor."""
    if node.op == "call_method":
        return node.target in _METHODS
    if node.op == "get_attr":
        return is_training_flag(node)
    if node.target is getattr:
        return node.args[1] in _ATTRIBUTES
    return is_arithmetic(node) and all(is_number(arg) for arg in node.args if isinstance(arg, fx.Node))


def is_arithmetic(node: fx.Node) -> bool:
    """Whether a node is an operation of Python itself, which gives numbers for numbers."""
    plain = getattr(node.target, "__module__", None) == "_operator"
    return node.op == "call_function" and (plain or node.target in CONVERSIONS)


def is_training_flag(node: fx.Node) -> bool:
    return node.op == "get_attr" and str(node.target).split(".")[-1] == "training"


def is_size(value: object) -> bool:
    """Whether a node is x.size() or x.shape."""
    if not isinstance(value, fx.Node):
        return False
    by_method = value.op == "call_method" and value.target == "size" and len(value.args) == 1
    return by_method or (value.target is getattr and value.args[1] == "shape")


def dimension_of(value: object) -> tuple[fx.Node, int] | None:
    """The tensor, and the dimension, whose size a number is: x.size(1), x.shape[-1], x.shape[2:][0]."""
    if not isinstance(value, fx.Node):
        return None
    if value.op == "call_method" and value.target == "size" and len(value.args) == 2:
        return value.args[0], value.args[1]
    if value.target is not operator.getitem or not isinstance(value.args[1], int):
        return None
    source, index = value.args
    if is_size(source):
        return source.args[0], index
    cut = source.args[1] if isinstance(source, fx.Node) and source.target is operator.getitem else None
    if not isinstance(cut, slice) or cut.step is not None or not is_size(source.args[0]):
        return None
    if index < 0:
        return (source.args[0].args[0], index) if cut.stop is None else None
    begin = cut.start or 0
    if not isinstance(begin, int) or (begin < 0 <= begin + index):
        return None
    return source.args[0].args[0], begin + index
