"""Sums and products of two values, of one shape or repeated over pixels or channels, as steps."""

from collections.abc import Callable

import torch
from torch import Tensor, fx

from cnnfast.plan.lowering.context import (
    Lowering,
    Respelled,
    Unsupported,
    Value,
    respell,
)
from cnnfast.plan.lowering.pixels import gives_one_pixel
from cnnfast.plan.nodes import Op
from cnnfast.plan.steps import Step, pointwise_step

_WITH_CHANNELS = ("nhwc", "grouped", "vector", "line")


def pair_of(low: Lowering, op: Op, a: Value, b: Value, a_node: fx.Node, b_node: fx.Node) -> Value:
    """op: ADD or MULTIPLY; nodes: their tensors have the shapes of the values in the forward."""
    small = [isinstance(v, Respelled) and v.kind == "expanded" for v in (a, b)]
    a, b = (v.step if is_small else v for v, is_small in zip((a, b), small, strict=True))
    a, b = _both_lines(low, a, b, a_node, b_node)
    kinds = {v.kind if isinstance(v, Respelled) else "" for v in (a, b)}
    if isinstance(a, list) or isinstance(b, list) or len(kinds) != 1 or kinds - {"", *_WITH_CHANNELS}:
        raise Unsupported("its operands are laid out in different ways")

    def image_shapes(shape_of: Callable[[fx.Node], list[int]]) -> list[list[int]]:
        operands = zip((a, b), (a_node, b_node), small, strict=True)
        return [_image_shape(value, shape_of(node), is_small) for value, node, is_small in operands]

    shapes = image_shapes(low.shape)
    relations = _relations(a, *shapes)
    if any(1 in s[2:] and not gives_one_pixel(_step(v)) for v, s in zip((a, b), shapes, strict=True)):
        larger = _relations(a, *image_shapes(low.larger_shape))
        relations = [relation for relation in relations if relation in larger]
    if not relations:
        word = "adds" if op is Op.ADD else "multiplies"
        raise Unsupported(
            f"it {word} {low.shape(a_node)} and {low.shape(b_node)}: a plan of this version repeats "
            "(N, C, 1, 1) and (N, 1, H, W) over images only, and has to do so for every size"
        )
    return _combined(low, op, a, b, relations[0], [shape[1] for shape in shapes])


def _both_lines(low: Lowering, a: Value, b: Value, *nodes: fx.Node) -> list[Value]:
    """One value per channel, (N, C, 1), is a line where the other value is one."""
    kinds = [v.kind if isinstance(v, Respelled) else "" for v in (a, b)]
    if sorted(kinds) != ["line", "vector"] or low.shape(nodes[kinds.index("vector")])[2:] != [1]:
        return [a, b]
    return [Respelled("line", _step(value)) for value in (a, b)]


def _step(value: Step | Respelled) -> Step:
    return value.step if isinstance(value, Respelled) else value


def _image_shape(value: Value, shape: list[int], is_small: bool) -> list[int]:
    """The shape (N, C, H, W) of the step behind a value; other shapes as they are."""
    kind = value.kind if isinstance(value, Respelled) else ""
    if is_small:
        return [*shape[:2], 1, 1]
    if kind == "nhwc":
        return [shape[0], shape[3], *shape[1:3]]
    if kind == "grouped":
        return [shape[0], shape[1] * shape[2], *shape[3:]]
    if kind == "line":
        return [*shape[:2], 1, shape[2]]
    return shape


def _relations(like: Value, a: list[int], b: list[int]) -> list[str]:
    """How values of these shapes may be combined: which is repeated over the other's pixels or channels.

    "spread": over the channels, while the other is repeated over its pixels.
    """
    found = ["same"] if a == b else []
    if not len(a) == len(b) == 4 or a[0] != b[0] or (isinstance(like, Respelled) and like.kind == "vector"):
        return found
    for name, shape, other in (("second", a, b), ("first", b, a)):
        if (other[1] == shape[1] and other[2:] == [1, 1]) or (other[1] == 1 and other[2:] == shape[2:]):
            found.append(f"{name} repeated")
    for name, shape, other in (("first", a, b), ("second", b, a)):
        if shape[1] == 1 and other[2:] == [1, 1] and isinstance(like, Step):
            found.append(f"{name} spread")
    return found


def _combined(low: Lowering, op: Op, a: Value, b: Value, relation: str, channels: list[int]) -> Value:
    if relation == "same":
        return respell(a, _gated_residual(low, op, _step(a), _step(b)) or Step(op, [_step(a), _step(b)]))
    image, part = (a, b) if relation in ("second repeated", "first spread") else (b, a)
    source = _step(image)
    if "spread" in relation:
        source = low.place(_over_channels(source, max(channels)))
    return respell(image, Step(op, [source, _step(part)], broadcasts=True))


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
