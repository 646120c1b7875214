"""Merging steps: batch norm into weights, sums and activations into the step that makes their operand."""

from collections import Counter

import torch
from torch import Tensor

from cnnfast.plan.nodes import SAME, Act, Op, fraction_word
from cnnfast.plan.steps import Step, reachable

_ACTIVATED = (Op.CONV2D, Op.LINEAR, Op.ADD, Op.AFFINE, Op.MULTIPLY, Op.LAYER_NORM, Op.GROUP_NORM)


def fold(outputs: list[Step]) -> list[Step]:
    """Merge what can be merged; returns the outputs, some of which may be other steps now."""
    for step in reachable(outputs):
        _gate_by_itself(step)
    steps = reachable(outputs)
    uses = Counter(source for step in steps for source in step.inputs) + Counter(outputs)
    for step in steps:
        _take_mean_first(step, uses)
    for step in steps:
        _rearrange_last(step, uses)
    merged: dict[Step, Step] = {}
    for step in steps:
        step.inputs = [merged.get(source, source) for source in step.inputs]
        for rule in (_fold_crop, _fold_affine, _fold_add, _fold_activation, _fold_pad, _fold_affine_in_front):
            into = rule(step, uses)
            if into is not None:
                into.layers += [name for name in step.layers if name not in into.layers]
                merged[step] = into
                uses[into] = uses[step]
                break
    return [merged.get(step, step) for step in outputs]


def _take_mean_first(step: Step, uses: Counter) -> None:
    """A 1×1 convolution of means is the mean of the convolution, at a fraction of the work.

    The two steps exchange what they do, so that readers keep their operand.
    """
    if not _is_plain_mean(step):
        return
    source = step.inputs[0]
    if source.op is not Op.CONV2D or len(source.inputs) > 1 or not _is_open(source, uses):
        return
    ones = ("kernel_h", "kernel_w", "stride_h", "stride_w")
    pads = ("pad_top", "pad_left", "pad_bottom", "pad_right")
    weight = source.constants["weight"]
    settings = {"kernel_h": weight.shape[2], "kernel_w": weight.shape[3], **source.settings}
    if any(settings[name] != 1 for name in ones) or any(settings[name] != 0 for name in pads):
        return
    for name in ("op", "settings", "constants", "layers"):
        mine, other = getattr(step, name), getattr(source, name)
        setattr(step, name, other)
        setattr(source, name, mine)


def _rearrange_last(step: Step, uses: Counter) -> None:
    """What works channel by channel may as well come before channels become pixels: nearer to a convolution.

    The two steps exchange what they do, so that readers keep their operand.
    """
    if step.op not in (Op.AFFINE, Op.ACTIVATION) or step.inputs[0].op is not Op.DEPTH_TO_SPACE:
        return
    source = step.inputs[0]
    if not _is_open(source, uses) or not source.settings["blocks_first"]:
        return
    block = source.settings["block_h"] * source.settings["block_w"]
    for name in ("op", "settings", "constants", "layers", "activation", "numbers"):
        mine, other = getattr(step, name), getattr(source, name)
        setattr(step, name, other)
        setattr(source, name, mine)
    if source.op is Op.AFFINE:
        source.settings = {"channels": source.settings["channels"] * block}
        source.constants = {name: value.repeat(block) for name, value in source.constants.items()}


def _is_plain_mean(step: Step) -> bool:
    """Every output the mean of equally many values, and fewer outputs than inputs."""
    if step.op is Op.GLOBAL_AVG_POOL:
        return True
    if step.op is not Op.AVG_POOL2D:
        return False
    plain = ("pad_h", "pad_w", "ceil_mode", "divisor_override")
    return not any(step.settings[name] for name in plain) and (
        step.settings["stride_h"] * step.settings["stride_w"] > 1
    )


def _is_open(step: Step, uses: Counter) -> bool:
    """Whether more can be merged into a step: nobody else looks at its value."""
    return uses[step] == 1 and step.activation is Act.NONE


def _fold_affine(step: Step, uses: Counter) -> Step | None:
    if step.op is not Op.AFFINE:
        return None
    source = step.inputs[0]
    if source.op not in (Op.CONV2D, Op.LINEAR, Op.AFFINE) or len(source.inputs) > 1:
        return None
    if not _is_open(source, uses):
        return None
    if source.op is Op.AFFINE:
        return _join_affines(source, step)
    scale, shift = step.constants["scale"], step.constants["shift"]
    weight, bias = source.constants["weight"].double(), source.constants["bias"]
    source.constants["weight"] = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    source.constants["bias"] = shift if bias is None else bias.double() * scale + shift
    return source


def _fold_add(step: Step, uses: Counter) -> Step | None:
    if step.op is not Op.ADD or step.broadcasts:
        return None
    for source, other in (step.inputs, step.inputs[::-1]):
        if source.op is Op.CONV2D and len(source.inputs) == 1 and _is_open(source, uses):
            source.inputs.append(other)
            source.position = step.position  # the other operand may come later than the convolution did
            return source
    for source, other in (step.inputs, step.inputs[::-1]):
        if source.op is Op.MULTIPLY and len(source.inputs) == 2 and _is_open(source, uses):
            source.inputs.append(other)
            source.position = step.position
            return source
    return None


def _fold_activation(step: Step, uses: Counter) -> Step | None:
    if step.op is not Op.ACTIVATION:
        return None
    source = step.inputs[0]
    maker = _maker_of_maximum(source, uses) if step.activation is Act.RELU else source
    if maker.op not in _ACTIVATED or not _is_open(maker, uses):
        return None
    maker.activation, maker.numbers = step.activation, step.numbers
    return source


_GATED = {Act.SIGMOID: Act.SILU, Act.HARDSIGMOID: Act.HARDSWISH}


def _gate_by_itself(step: Step) -> None:
    """x * sigmoid(x) is SiLU, and so on: written out in some networks."""
    if step.op is not Op.MULTIPLY or step.broadcasts:
        return
    for source, gate in (step.inputs, step.inputs[::-1]):
        if gate.op is Op.ACTIVATION and gate.inputs == [source] and gate.activation in _GATED:
            step.op, step.inputs, step.activation = Op.ACTIVATION, [source], _GATED[gate.activation]
            step.layers += [name for name in gate.layers if name not in step.layers]
            return


def _join_affines(first: Step, second: Step) -> Step:
    """(x * a + b) * c + d as one step; it keeps the place of the first."""
    a, b = (first.constants[name].double() for name in ("scale", "shift"))
    c, d = (second.constants[name].double() for name in ("scale", "shift"))
    first.constants = {"scale": a * c, "shift": b * c + d}
    return first


def _fold_pad(step: Step, uses: Counter) -> Step | None:
    """Zeros around a convolution's input are padding of its own."""
    if step.op is not Op.CONV2D or step.inputs[0].op is not Op.PAD or uses[step.inputs[0]] != 1:
        return None
    pad = step.inputs[0]
    if len(pad.inputs) > 1 or pad.settings["value"] != fraction_word(0.0) or step.settings["pad_top"] == SAME:
        return None
    for side in ("top", "left", "bottom", "right"):
        step.settings[f"pad_{side}"] += pad.settings[side]
    step.inputs[0] = pad.inputs[0]
    step.layers = [*pad.layers, *step.layers]
    return None


def _fold_crop(step: Step, uses: Counter) -> Step | None:
    """Rows and columns left out behind a convolution are padding that it does not need."""
    if step.op is not Op.CROP or step.settings["stride_h"] > 1 or step.settings["stride_w"] > 1:
        return None
    source = step.inputs[0]
    if source.op is not Op.CONV2D or len(source.inputs) > 1 or uses[source] != 1:
        return None
    sides = (("top", "h"), ("left", "w"), ("bottom", "h"), ("right", "w"))
    pads = {
        f"pad_{side}": source.settings[f"pad_{side}"]
        - step.settings[side] * source.settings[f"stride_{axis}"]
        for side, axis in sides
    }
    if min(pads.values()) < 0 or source.settings["pad_top"] == SAME:
        return None
    source.settings |= pads
    return source


def _fold_affine_in_front(step: Step, uses: Counter) -> Step | None:
    """What scales and shifts the input of a convolution without padding is part of its weight and bias."""
    affine = step.inputs[0] if step.op is Op.CONV2D else step
    if affine is step or affine.op is not Op.AFFINE or not _is_open(affine, uses):
        return None
    if any(step.settings[f"pad_{side}"] for side in ("top", "left", "bottom", "right")):
        return None
    weight, groups = step.constants["weight"].double(), step.settings["groups"]
    scale, shift = (
        affine.constants[name].double().view(groups, 1, weight.shape[1], 1, 1) for name in ("scale", "shift")
    )
    grouped = weight.unflatten(0, (groups, -1))
    bias = (grouped * shift).sum((2, 3, 4)).flatten()
    step.constants["weight"] = (grouped * scale).flatten(0, 1)
    own = step.constants["bias"]
    step.constants["bias"] = bias if own is None else own.double() + bias
    step.inputs[0] = affine.inputs[0]
    step.layers = [*affine.layers, *(name for name in step.layers if name not in affine.layers)]
    return None


def _maker_of_maximum(step: Step, uses: Counter) -> Step:
    """The step in front of max pools: a ReLU may as well come before the maximum is taken."""
    while step.op is Op.MAX_POOL2D and _is_open(step, uses):
        step = step.inputs[0]
    return step


def batch_norm_as_affine(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift, in float64, of a batch norm with fixed statistics."""
    scale = torch.rsqrt(var.detach().double() + eps)
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -mean.detach().double() * scale
    return scale, shift if bias is None else shift + bias.detach().double()
