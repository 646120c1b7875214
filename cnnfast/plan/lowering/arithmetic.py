"""Sums, differences, products and quotients of values, numbers and parameters as steps."""

import math
import operator

import torch
from torch import Tensor, fx

from cnnfast.fuse.number_nodes import is_number, is_size
from cnnfast.plan.lowering.context import (
    Lowering,
    Respelled,
    Unsupported,
    Value,
    is_constant,
    lowers,
    respell,
)
from cnnfast.plan.lowering.pairs import pair_of
from cnnfast.plan.lowering.pixels import check_features_of_one_pixel
from cnnfast.plan.nodes import Act, Op, fraction_word
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
    if _is_value(low, other):
        if not _is_value(low, input):
            if input != 1:
                raise Unsupported("it divides a constant by values of the network")
            return _to_the_power(low.value(other), -1.0)
        return _quotient(low, input, other)
    divisor = _constant(low, other)
    reciprocal = 1.0 / divisor.double() if isinstance(divisor, Tensor) else 1.0 / divisor
    return _affine(low, input, reciprocal, 0.0)


def _quotient(low: Lowering, a: fx.Node, b: fx.Node) -> Value:
    """Times the reciprocal, which differs by a rounding."""
    divisor = low.value(b)
    if isinstance(divisor, list):
        raise Unsupported("it divides by several values")
    reciprocal = _placed(low, _to_the_power(divisor, -1.0))
    return pair_of(low, Op.MULTIPLY, low.value(a), reciprocal, a, b)


@lowers(torch.addcmul, methods=["addcmul"])
def _addcmul(low: Lowering, input, tensor1, tensor2, *, value=1) -> Value:
    if _is_value(low, input) or _is_value(low, tensor1) or not isinstance(value, (int, float)):
        raise Unsupported("a plan of this version scales and shifts by parameters here")
    return _affine(low, tensor2, _times(_constant(low, tensor1), value), _constant(low, input))


@lowers(operator.pow, operator.ipow, torch.pow, methods=["pow", "pow_"])
def _power(low: Lowering, input, exponent) -> Value:
    if not _is_value(low, input) or _is_value(low, exponent):
        raise Unsupported("it raises to the power of values of the network")
    number = _constant(low, exponent)
    if isinstance(number, Tensor) and number.numel() != 1:
        raise Unsupported(f"it raises to powers of shape {list(number.shape)}: a plan knows one number")
    if float(number) == 2:
        return _pair(low, Op.MULTIPLY, input, input)
    return _to_the_power(low.value(input), float(number))


def _to_the_power(value: Value, exponent: float) -> Value:
    if isinstance(value, list):
        raise Unsupported("it raises several values to a power")
    step = value.step if isinstance(value, Respelled) else value
    return respell(value, Step(Op.POWER, [step], {"exponent": fraction_word(exponent)}))


@lowers(torch.sqrt, methods=["sqrt", "sqrt_"])
def _sqrt(low: Lowering, input) -> Value:
    return _power(low, input, 0.5)


@lowers(torch.rsqrt, methods=["rsqrt", "rsqrt_"])
def _rsqrt(low: Lowering, input) -> Value:
    return _power(low, input, -0.5)


@lowers(torch.reciprocal, methods=["reciprocal", "reciprocal_"])
def _reciprocal(low: Lowering, input) -> Value:
    return _power(low, input, -1.0)


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
    if not isinstance(found, (Step, Respelled)):
        found = low.step(value)
    return _affine_of(low, found, low.shape(value), scale, shift)


def _affine_of(
    low: Lowering, found: Step | Respelled, shape: list[int], scale: Tensor | float, shift: Tensor | float
) -> Value:
    """The same of a value whose tensor has this shape."""
    numbers = not any(isinstance(part, Tensor) and part.numel() > 1 for part in (scale, shift))
    kinds = ("nhwc", "plane", "line", *(("vector", "grouped") if numbers else ()))
    if isinstance(found, Respelled) and found.kind not in kinds:
        raise Unsupported(f"it scales or shifts values laid out as {found.kind}: a plan has no node for that")
    step = found.step if isinstance(found, Respelled) else found
    kind = found.kind if isinstance(found, Respelled) else ""
    nhwc = kind == "nhwc"
    channels = {"plane": 1, "nhwc": shape[-1], "vector": math.prod(shape[1:])}.get(kind, shape[1])
    if kind == "grouped":
        channels = shape[1] * shape[2]
    if len(shape) == 2:
        check_features_of_one_pixel(step)
    of_shape = len(shape) == 4 or kind == "line"
    trailing = 0 if nhwc or len(shape) == 2 else len(shape) - 2 if of_shape else 2
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
    scaled = _placed(low, _affine(low, b, float(alpha), 0.0))
    return pair_of(low, Op.ADD, low.value(a), scaled, a, b)


@lowers(methods=["expand_as"])
def _expand_as(low: Lowering, input, other) -> Value:
    """One value per channel, for sums and products with the image that it is made as large as."""
    before, after = low.shape(input), low.shape(other)
    if before == after and low.larger_shape(input) == low.larger_shape(other):
        return low.value(input)
    if len(before) != 4 or before != [*after[:2], 1, 1]:
        raise Unsupported(f"it expands {before} to {after}: a plan of this version expands (N, C, 1, 1) only")
    return Respelled("expanded", low.image(input))


@lowers(torch.maximum, methods=["maximum"])
def _maximum(low: Lowering, input, other) -> Value:
    """The larger of x and a parameter c is relu(x - c) + c."""
    if not _is_value(low, input):
        input, other = other, input
    if _is_value(low, other):
        raise Unsupported(
            "it takes the larger of two values: a plan of this version knows that of parameters"
        )
    bound = _constant(low, other)
    above = _placed(low, _affine(low, input, 1.0, -bound))
    relu = Step(Op.ACTIVATION, [above.step if isinstance(above, Respelled) else above], activation=Act.RELU)
    above = _placed(low, respell(above, relu))
    return _affine_of(low, above, low.shape(input), 1.0, bound)


def _placed(low: Lowering, value: Step | Respelled) -> Step | Respelled:
    low.place(value.step if isinstance(value, Respelled) else value)
    return value


@lowers(methods=["expand"])
def _expand(low: Lowering, input, *sizes) -> Value:
    """x.expand(y.shape) is x.expand_as(y)."""
    if len(sizes) != 1 or not is_size(sizes[0]):
        raise Unsupported("it expands to numbers: write x.expand_as(y)")
    return _expand_as(low, input, sizes[0].args[0])


def _pair(low: Lowering, op: Op, a: fx.Node, b: fx.Node) -> Value:
    return pair_of(low, op, low.value(a), low.value(b), a, b)
