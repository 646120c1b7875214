"""Sums and products of two values, of one shape or repeated over pixels or channels, as steps."""

import torch
from torch import Tensor

from cnnfast.plan.lowering.context import (
    Lowering,
    Respelled,
    Unsupported,
    Value,
    gives_one_pixel,
    respell,
)
from cnnfast.plan.nodes import Op
from cnnfast.plan.steps import Step, pointwise_step

_WITH_CHANNELS = ("nhwc", "grouped", "vector")


def pair_of(low: Lowering, op: Op, a: Value, b: Value, a_shape: list[int], b_shape: list[int]) -> Value:
    """op: ADD or MULTIPLY; shapes: those that the tensors have in the forward."""
    if isinstance(b, Respelled) and b.kind == "expanded":
        b, b_shape = b.step, [*b_shape[:2], 1, 1]
    if isinstance(a, Respelled) and a.kind == "expanded":
        a, a_shape = a.step, [*a_shape[:2], 1, 1]
    kinds = {v.kind if isinstance(v, Respelled) else "" for v in (a, b)}
    if isinstance(a, list) or isinstance(b, list) or len(kinds) != 1 or kinds - {"", *_WITH_CHANNELS}:
        raise Unsupported("its operands are laid out in different ways")
    if a_shape == b_shape:
        first, second = _step(a), _step(b)
        return respell(a, _gated_residual(low, op, first, second) or Step(op, [first, second]))
    made = _repeated(low, op, a, b, _as_image(a, a_shape), _as_image(b, b_shape))
    if made is not None:
        return made
    word = "adds" if op is Op.ADD else "multiplies"
    raise Unsupported(
        f"it {word} {a_shape} and {b_shape}: a plan of this version repeats (N, C, 1, 1) and (N, 1, H, W) "
        "over images only"
    )


def _step(value: Step | Respelled) -> Step:
    return value.step if isinstance(value, Respelled) else value


def _as_image(value: Value, shape: list[int]) -> list[int]:
    """The shape (N, C, H, W) of the step behind a value; other shapes as they are."""
    kind = value.kind if isinstance(value, Respelled) else ""
    if kind == "nhwc":
        return [shape[0], shape[3], *shape[1:3]]
    if kind == "grouped":
        return [shape[0], shape[1] * shape[2], *shape[3:]]
    return shape


def _repeated(
    low: Lowering, op: Op, a: Value, b: Value, a_shape: list[int], b_shape: list[int]
) -> Value | None:
    """One operand repeated over the other's pixels or channels; shapes: (N, C, H, W)."""
    if not len(a_shape) == len(b_shape) == 4 or a_shape[0] != b_shape[0]:
        return None
    if isinstance(a, Respelled) and (a.kind == "vector" or a.groups != b.groups):
        return None
    for image, part, shape, other in ((a, b, a_shape, b_shape), (b, a, b_shape, a_shape)):
        per_channel = other[1] == shape[1] and other[2:] == [1, 1]
        per_pixel = other[1] == 1 and other[2:] == shape[2:]
        if per_channel or per_pixel:
            return respell(image, Step(op, [_step(image), _step(part)], broadcasts=True))
    for plane, part, shape, other in ((a, b, a_shape, b_shape), (b, a, b_shape, a_shape)):
        if shape[1] == 1 and other[2:] == [1, 1] and isinstance(plane, Step):
            image = low.place(_over_channels(plane, other[1]))
            return Step(op, [image, _step(part)], broadcasts=True)
    return None


def _over_channels(plane: Step, channels: int) -> Step:
    """An image of one channel, as often as there are channels: a convolution by ones."""
    return pointwise_step(plane, torch.ones(channels, 1, 1, 1))


def _gated_residual(low: Lowering, op: Op, a: Step, b: Step) -> Step | None:
    """x + (x * gate * scale + shift) as x * (gate * scale + 1) + shift: one pass over the image."""
    for x, other in ((a, b), (b, a)) if op is Op.ADD else ():
        product, scale, shift = _scaled(other)
        gated = scale is not None and product.op is Op.MULTIPLY and product.broadcasts
        if not gated or product.inputs[0] is not x or not gives_one_pixel(product.inputs[1]):
            continue
        one, channels = torch.ones(len(scale), dtype=torch.float64), {"channels": len(scale)}
        gate = Step(Op.AFFINE, [product.inputs[1]], channels, {"scale": scale, "shift": one})
        scaled = low.place(Step(Op.MULTIPLY, [x, low.place(gate)], broadcasts=True))
        return Step(Op.AFFINE, [scaled], dict(channels), {"scale": one, "shift": shift})
    return None


def _scaled(step: Step) -> tuple[Step, Tensor | None, Tensor | None]:
    """What is scaled and shifted, perhaps several times, and by how much; None where it is not."""
    scale = shift = None
    while step.op is Op.AFFINE:
        a, b = (step.constants[name].double() for name in ("scale", "shift"))
        scale, shift = (a, b) if scale is None else (scale * a, scale * b + shift)
        step = step.inputs[0]
    return step, scale, shift
