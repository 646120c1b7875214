"""Padding as steps: by a constant, by an image's own pixels, to another image's size."""

import operator

import torch.nn.functional as F
from torch import fx, nn

from cnnfast.fuse.same_padding import Window, pads_as_same
from cnnfast.plan.lowering.context import (
    Lowering,
    Respelled,
    Unsupported,
    lowers,
    side_of,
)
from cnnfast.plan.nodes import Mirror, Op, fraction_word
from cnnfast.plan.steps import Step, crop_step

_COMPUTED = "its padding is computed in the forward: write it as numbers"
_MIRRORS = {"reflect": Mirror.REFLECT, "replicate": Mirror.REPLICATE, "circular": Mirror.CIRCULAR}


@lowers(modules=[nn.ZeroPad2d])
def _zero_pad_module(low: Lowering, layer: nn.ZeroPad2d, x: fx.Node) -> Step:
    return _pad(low, x, layer.padding)


@lowers(modules=[nn.ConstantPad2d])
def _constant_pad_module(low: Lowering, layer: nn.ConstantPad2d, x: fx.Node) -> Step:
    return _pad(low, x, layer.padding, "constant", layer.value)


@lowers(modules=[nn.ReflectionPad2d])
def _reflection_pad_module(low: Lowering, layer: nn.ReflectionPad2d, x: fx.Node) -> Step:
    return _pad(low, x, layer.padding, "reflect")


@lowers(modules=[nn.ReplicationPad2d])
def _replication_pad_module(low: Lowering, layer: nn.ReplicationPad2d, x: fx.Node) -> Step:
    return _pad(low, x, layer.padding, "replicate")


@lowers(modules=[nn.CircularPad2d])
def _circular_pad_module(low: Lowering, layer: nn.CircularPad2d, x: fx.Node) -> Step:
    return _pad(low, x, layer.padding, "circular")


@lowers(F.pad, lines=True)
def _pad(low: Lowering, input, pad, mode="constant", value=None) -> Step | Respelled:
    pads = list(pad) if isinstance(pad, (tuple, list)) else [pad]
    if low.is_line(input):
        if len(pads) != 2:
            raise Unsupported(f"it pads lines by {pads}; a plan of this version pads their ends only")
        pads += [0, 0]
    value = 0.0 if value is None else value
    like = _padded_like(pads, input) if mode == "constant" else None
    if like is not None:
        return _pad_like(low, input, like, value)
    if not all(isinstance(p, int) for p in pads) or not isinstance(value, (int, float)):
        if mode == "constant" and value == 0 and len(pads) == 4 and not low.is_line(input):
            return Respelled("padded", low.image(input))
        raise Unsupported(_COMPUTED)
    if mode != "constant":
        return mirrored_step(low.image(input), pads, mode)
    return padding_step(low, low.image(input), pads, value)


def padding_step(low: Lowering, source: Step, pads: list[int], value: float) -> Step:
    """pads: left, right, top, bottom as torch.nn.functional.pad has them; negative ones leave pixels out."""
    left, right, top, bottom, *others = [*pads, 0, 0, 0, 0][: max(4, len(pads))]
    if any(others):
        raise Unsupported(f"it pads by {pads}; a plan of this version pads rows and columns only")
    settings = {"top": top, "left": left, "bottom": bottom, "right": right}
    less = {side: max(0, -size) for side, size in settings.items()}
    if any(less.values()):
        source = crop_step(source, **less)
        if max(settings.values()) <= 0:
            return source
        low.place(source)
    more = {side: max(0, size) for side, size in settings.items()}
    return Step(Op.PAD, [source], more | {"value": fraction_word(float(value))})


def same_source(low: Lowering, x: fx.Node, kernel: Window, stride: Window, dilation: Window) -> Step | None:
    """What a convolution reads whose image a forward pads by as much as SAME does.

    None where x is no image padded by numbers of the forward's. Raises Unsupported for other amounts.
    """
    found = low.value(x)
    if not isinstance(found, Respelled) or found.kind != "padded":
        return None
    if not pads_as_same(x, kernel, stride, dilation, low.root):
        raise Unsupported(_COMPUTED)
    return found.step


def mirrored_step(source: Step, pads: list[int], mode: str) -> Step:
    """pads: left, right, top, bottom; mode: of torch.nn.functional.pad, other than "constant"."""
    if mode not in _MIRRORS or len(pads) != 4 or min(pads) < 0:
        raise Unsupported(f"it pads by {pads}, mode '{mode}'; a plan knows {', '.join(_MIRRORS)}, four sides")
    left, right, top, bottom = pads
    sides = {"top": top, "left": left, "bottom": bottom, "right": right}
    return Step(Op.MIRROR_PAD, [source], sides | {"mode": _MIRRORS[mode]})


def _pad_like(low: Lowering, input: fx.Node, like: fx.Node, value: object) -> Step:
    for shape_of in (low.shape, low.larger_shape):
        if any(a < b for a, b in zip(shape_of(like)[2:], shape_of(input)[2:], strict=True)):
            raise Unsupported(
                "it cuts an image to the size of a smaller one: a plan pads to larger ones only"
            )
    zeros = dict.fromkeys(("top", "left", "bottom", "right"), 0)
    settings = zeros | {"value": fraction_word(float(value))}
    return Step(Op.PAD, [low.image(input), low.image(like)], settings)


def _padded_like(pads: list[object], x: fx.Node) -> fx.Node | None:
    """The image to whose size x is padded, by half of the difference and the rest on each side."""
    if len(pads) != 4:
        return None
    found = []
    for first, second, dims in ((*pads[:2], (3, -1)), (*pads[2:], (2, -2))):
        if not (_is_call(first, operator.floordiv) and first.args[1] == 2 and _is_call(second, operator.sub)):
            return None
        difference = first.args[0]
        rest = _equal(second.args[0], difference) and _equal(second.args[1], first)
        if not rest or not _is_call(difference, operator.sub):
            return None
        larger, own = (side_of(size, dims) for size in difference.args)
        if larger is None or own is not x:
            return None
        found.append(larger)
    return found[0] if found[0] is found[1] else None


def _is_call(value: object, function: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "call_function" and value.target is function


def _equal(a: object, b: object) -> bool:
    """Whether two numbers of a forward are computed in the same way."""
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
        return a == b
    same = a is b or (a.op, a.target, len(a.args), a.kwargs) == (b.op, b.target, len(b.args), b.kwargs)
    return same and all(_equal(x, y) for x, y in zip(a.args, b.args, strict=True))
