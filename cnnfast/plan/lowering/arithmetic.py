"""Sums, differences, products and quotients of values, numbers and parameters as steps."""

import operator

import torch
from torch import Tensor, fx

from cnnfast.fuse.tracing import is_number
from cnnfast.plan.lowering.context import (
    Lowering,
    Respelled,
    Unsupported,
    Value,
    check_features_of_one_pixel,
    is_constant,
    lowers,
    respell,
)
from cnnfast.plan.nodes import Op
from cnnfast.plan.steps import Step


@lowers(operator.add, operator.iadd, torch.add, methods=["add", "add_"])
def _add(low: Lowering, input, other, *, alpha=1) -> Value:
    if not _is_value(low, input):
        input, other = other, input
        if alpha != 1:
            raise Unsupported("it scales its second argument by alpha: write the product out")
    if not _is_value(low, other):
        return _affine(low, input, 1.0, _times(_constant(low, other), alpha))
    return _sum(low, input, other, alpha)


@lowers(operator.sub, operator.isub, torch.sub, methods=["sub", "sub_"])
def _subtract(low: Lowering, input, other, *, alpha=1) -> Value:
    if not _is_value(low, input):
        return _affine(low, other, -alpha, _constant(low, input))
    if not _is_value(low, other):
        return _affine(low, input, 1.0, _times(_constant(low, other), -alpha))
    return _sum(low, input, other, -alpha)


@lowers(operator.mul, operator.imul, torch.mul, torch.multiply, methods=["mul", "mul_", "multiply"])
def _multiply(low: Lowering, input, other) -> Value:
    if not _is_value(low, input):
        input, other = other, input
    if not _is_value(low, other):
        return _affine(low, input, _constant(low, other), 0.0)
    return _pair(low, Op.MULTIPLY, input, other)


@lowers(operator.truediv, operator.itruediv, torch.div, torch.true_divide, methods=["div", "div_"])
def _divide(low: Lowering, input, other) -> Value:
    if not _is_value(low, input) or _is_value(low, other):
        raise Unsupported("it divides by values of the network")
    divisor = _constant(low, other)
    reciprocal = 1.0 / divisor.double() if isinstance(divisor, Tensor) else 1.0 / divisor
    return _affine(low, input, reciprocal, 0.0)


@lowers(operator.pow, operator.ipow, torch.pow, methods=["pow", "pow_"])
def _power(low: Lowering, input, exponent) -> Value:
    if not isinstance(exponent, (int, float)) or exponent != 2 or not _is_value(low, input):
        raise Unsupported(f"it raises to the power {exponent}: a plan of this version knows squares only")
    return _pair(low, Op.MULTIPLY, input, input)


@lowers(torch.square, methods=["square", "square_"])
def _square(low: Lowering, input) -> Value:
    return _power(low, input, 2)


@lowers(operator.neg, torch.neg, methods=["neg"])
def _negate(low: Lowering, input) -> Value:
    return _affine(low, input, -1.0, 0.0)


def _is_value(low: Lowering, argument: object) -> bool:
    """Whether an argument is computed from the network's input."""
    if not isinstance(argument, fx.Node) or is_number(argument):
        return False
    return not is_constant(argument, low.root)


def _constant(low: Lowering, argument: object) -> Tensor | float:
    if isinstance(argument, (int, float)) and not isinstance(argument, bool):
        return float(argument)
    if isinstance(argument, fx.Node) and is_number(argument):
        return float(low.channel_number(argument))
    return low.tensor(argument).detach()


def _times(constant: Tensor | float, factor: float) -> Tensor | float:
    if isinstance(factor, fx.Node) or isinstance(factor, bool):
        raise Unsupported("its alpha is computed in the forward: write it as a number")
    return constant if factor == 1 else constant * factor


def _affine(low: Lowering, value: fx.Node, scale: Tensor | float, shift: Tensor | float) -> Value:
    """value * scale + shift, by channel."""
    found = low.value(value)
    if isinstance(found, list) or (isinstance(found, Respelled) and found.kind not in ("nhwc", "plane")):
        found = low.step(value)
    step = found.step if isinstance(found, Respelled) else found
    shape = low.shape(value)
    nhwc = isinstance(found, Respelled) and found.kind == "nhwc"
    channels = 1 if len(shape) == 3 else shape[-1] if nhwc else shape[1]
    if len(shape) == 2:
        check_features_of_one_pixel(step)
    trailing = 0 if nhwc or len(shape) == 2 else len(shape) - 2 if len(shape) == 4 else 2
    constants = {
        "scale": _per_channel(scale, channels, trailing),
        "shift": _per_channel(shift, channels, trailing),
    }
    return respell(found, Step(Op.AFFINE, [step], {"channels": channels}, constants))


def _per_channel(value: Tensor | float, channels: int, trailing: int) -> Tensor:
    """One float64 per channel; trailing: dimensions behind the channels."""
    if not isinstance(value, Tensor):
        return torch.full((channels,), value, dtype=torch.float64)
    if value.numel() == 1:
        return value.double().reshape(1).expand(channels)
    shape = list(value.shape)
    behind = shape[len(shape) - trailing :] if trailing else []
    before = shape[: len(shape) - trailing - 1]
    at = len(shape) - trailing - 1
    if at < 0 or shape[at] != channels or any(size != 1 for size in (*behind, *before)):
        raise Unsupported(f"its constant has shape {shape}: a plan knows one number per channel")
    return value.double().reshape(channels)


def _sum(low: Lowering, a: fx.Node, b: fx.Node, alpha: float) -> Value:
    if alpha == 1:
        return _pair(low, Op.ADD, a, b)
    if isinstance(alpha, fx.Node):
        raise Unsupported("its alpha is computed in the forward: write it as a number")
    scaled = _affine(low, b, float(alpha), 0.0)
    low.place(scaled.step if isinstance(scaled, Respelled) else scaled)
    return _pair_of(low, Op.ADD, low.value(a), scaled, low.shape(a), low.shape(b))


@lowers(methods=["expand_as"])
def _expand_as(low: Lowering, input, other) -> Value:
    """One value per channel, for sums and products with the image that it is made as large as."""
    before, after = low.shape(input), low.shape(other)
    if before == after:
        return low.value(input)
    if len(before) != 4 or before != [*after[:2], 1, 1]:
        raise Unsupported(f"it expands {before} to {after}: a plan of this version expands (N, C, 1, 1) only")
    return Respelled("expanded", low.image(input))


def _pair(low: Lowering, op: Op, a: fx.Node, b: fx.Node) -> Value:
    return _pair_of(low, op, low.value(a), low.value(b), low.shape(a), low.shape(b))


def _pair_of(low: Lowering, op: Op, a: Value, b: Value, a_shape: list[int], b_shape: list[int]) -> Value:
    if isinstance(b, Respelled) and b.kind == "expanded":
        b, b_shape = b.step, [*b_shape[:2], 1, 1]
    if isinstance(a, Respelled) and a.kind == "expanded":
        a, a_shape = a.step, [*a_shape[:2], 1, 1]
    kinds = {v.kind if isinstance(v, Respelled) else "" for v in (a, b)}
    if isinstance(a, list) or isinstance(b, list) or len(kinds) != 1 or kinds - {"", "nhwc"}:
        raise Unsupported("its operands are laid out in different ways")
    steps = [v.step if isinstance(v, Respelled) else v for v in (a, b)]
    if a_shape == b_shape:
        return respell(a, Step(op, steps))
    if kinds == {""} and len(a_shape) == len(b_shape) == 4 and a_shape[:2] == b_shape[:2]:
        if b_shape[2:] == [1, 1]:
            return Step(op, steps, broadcasts=True)
        if a_shape[2:] == [1, 1]:
            return Step(op, steps[::-1], broadcasts=True)
    word = "adds" if op is Op.ADD else "multiplies"
    raise Unsupported(
        f"it {word} {a_shape} and {b_shape}: a plan of this version broadcasts (N, C, 1, 1) over images only"
    )
