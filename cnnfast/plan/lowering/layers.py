"""Convolutions and linear layers, with what is fused to them, as steps."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.fuse.foreign import conv_weight, pads_to_same
from cnnfast.nn._holders import pad_mode, split_padding
from cnnfast.nn.bn_conv import bn_act_conv
from cnnfast.nn.conv import conv_act
from cnnfast.nn.conv_bn import conv_bn_act
from cnnfast.nn.linear_bn import linear_bn_act
from cnnfast.ops.linear import linear
from cnnfast.plan.lowering.context import (
    Lowering,
    Respelled,
    Unsupported,
    Value,
    lowers,
    numbers,
    pair_settings,
)
from cnnfast.plan.lowering.norms import affine_step, finish
from cnnfast.plan.lowering.padding import mirrored_step, same_source
from cnnfast.plan.nodes import SAME, Op
from cnnfast.plan.steps import Step


def conv_step(low: Lowering, source: Step, weight, bias, pads, stride, dilation, groups) -> Step:
    """pads: left, right, top, bottom, as torch.nn.functional.pad has them."""
    weight = low.tensor(weight)
    left, right, top, bottom = pads
    settings = {
        **dict(zip(("out_channels", "group_channels", "kernel_h", "kernel_w"), weight.shape, strict=True)),
        **pair_settings("stride", stride),
        **pair_settings("dilation", dilation if max(weight.shape[2:]) > 1 else 1),
        **{"pad_left": left, "pad_right": right, "pad_top": top, "pad_bottom": bottom},
        "groups": groups,
    }
    _pin_channels(source, weight.shape[1] * groups)
    return Step(Op.CONV2D, [source], settings, {"weight": weight, "bias": low.tensor(bias)})


def _pin_channels(source: Step, channels: int) -> None:
    """An external input with one right number of channels says so itself."""
    if source.op is Op.INPUT:
        source.settings["channels"] = channels


def padded(
    low: Lowering, source: Step, pad_first: list[int], mode: str, padding: object
) -> tuple[Step, tuple[int, ...]]:
    """What a convolution reads, and its own zeros around that: left, right, top, bottom."""
    h, w = numbers(padding, "padding")
    left, right, top, bottom = pad_first or (0, 0, 0, 0)
    if pad_first and mode != "constant":
        source = low.place(mirrored_step(source, list(pad_first), mode))
        left = right = top = bottom = 0
    return source, (left + w, right + w, top + h, bottom + h)


@lowers(modules=[nn.Conv2d])
def _conv_module(low: Lowering, conv: nn.Conv2d, x: fx.Node) -> Step:
    pad_first, padding = split_padding(conv)
    weight, window = conv_weight(conv), (conv.stride, conv.dilation)
    source = _same_source(low, x, weight, padding if not pad_first else 1, *window)
    if source is not None:
        return conv_step(low, source, weight, conv.bias, (SAME,) * 4, *window, conv.groups)
    source, pads = padded(low, low.image(x), pad_first, pad_mode(conv), padding)
    pads = (SAME,) * 4 if pads_to_same(conv) else pads
    return conv_step(low, source, weight, conv.bias, pads, *window, conv.groups)


def _same_source(low: Lowering, x: fx.Node, weight, padding, stride, dilation) -> Step | None:
    """See same_source; padding: the convolution's own."""
    if numbers(padding, "padding") != (0, 0):
        return None
    window = (numbers(setting, name) for setting, name in ((stride, "stride"), (dilation, "dilation")))
    return same_source(low, x, tuple(low.tensor(weight).shape[2:]), *window)


@lowers(torch.conv2d, F.conv2d)
def _conv_function(
    low: Lowering, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
) -> Step:
    if isinstance(padding, str):
        raise Unsupported("its padding is a word: use nn.Conv2d, or write the padding as numbers")
    groups = low.channel_number(groups)  # of a depthwise convolution, say: x.shape[1]
    source = _same_source(low, input, weight, padding, stride, dilation)
    if source is not None:
        return conv_step(low, source, weight, bias, (SAME,) * 4, stride, dilation, groups)
    source, pads = padded(low, low.image(input), [], "constant", padding)
    return conv_step(low, source, weight, bias, pads, stride, dilation, groups)


@lowers(conv_act)
def _conv_act(
    low, input, residual, weight, bias, pad_first, pad_mode, stride, padding, dilation, groups, activation
) -> Step:
    source, pads = padded(low, low.image(input), pad_first, pad_mode, padding)
    step = conv_step(low, source, weight, bias, pads, stride, dilation, groups)
    return finish(low, step, residual, activation)


@lowers(conv_bn_act)
def _conv_bn_act(
    low, input, residual, weight, bias, bn_weight, bn_bias, running_mean, running_var, batches_tracked,
    training, track_running_stats, momentum, eps, pad_first, pad_mode, stride, padding, dilation, groups,
    activation,
) -> Step:  # fmt: skip
    source, pads = padded(low, low.image(input), pad_first, pad_mode, padding)
    step = conv_step(low, source, weight, bias, pads, stride, dilation, groups)
    step = affine_step(low, low.place(step), running_mean, running_var, bn_weight, bn_bias, training, eps)
    return finish(low, step, residual, activation)


@lowers(bn_act_conv)
def _bn_act_conv(
    low, input, residual, weight, bias, bn_weight, bn_bias, running_mean, running_var, batches_tracked,
    training, track_running_stats, momentum, eps, pad_first, pad_mode, stride, padding, dilation, groups,
    activation,
) -> Step:  # fmt: skip
    step = affine_step(low, low.image(input), running_mean, running_var, bn_weight, bn_bias, training, eps)
    step = low.place(finish(low, step, None, activation))
    step, pads = padded(low, step, pad_first, pad_mode, padding)
    return finish(low, conv_step(low, step, weight, bias, pads, stride, dilation, groups), residual, "none")


@lowers(modules=[nn.Linear])
def _linear_module(low: Lowering, layer: nn.Linear, x: fx.Node) -> Value:
    return _linear(low, x, layer.weight, layer.bias)


@lowers(F.linear)
def _linear(low: Lowering, input, weight, bias=None) -> Value:
    found = low.value(input)
    if isinstance(found, Respelled) and found.kind == "nhwc":
        return Respelled("nhwc", _pointwise(low, found.step, weight, bias))
    source, weight = low.step(input), low.tensor(weight)
    if len(low.shapes[input]) != 2:
        raise Unsupported(
            f"its input has shape {list(low.shapes[input])}, not (N, features): flatten it first"
        )
    _pin_channels(source, weight.shape[1])
    settings = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    return Step(Op.LINEAR, [source], settings, {"weight": weight, "bias": low.tensor(bias)})


def _pointwise(low: Lowering, source: Step, weight, bias) -> Step:
    """A linear layer over the channels of every pixel."""
    kernel = low.tensor(weight)[:, :, None, None]
    return conv_step(low, source, kernel, bias, (0, 0, 0, 0), 1, 1, 1)


@lowers(linear)
def _linear_act(low: Lowering, input, weight, bias=None, activation="none") -> Step:
    low.step(input)
    return finish(low, _linear(low, input, weight, bias), None, activation)


@lowers(linear_bn_act)
def _linear_bn_act(
    low, input, weight, bias, bn_weight, bn_bias, running_mean, running_var, batches_tracked, training,
    track_running_stats, momentum, eps, activation,
) -> Step:  # fmt: skip
    step = low.place(_linear(low, input, weight, bias))
    step = affine_step(low, step, running_mean, running_var, bn_weight, bn_bias, training, eps)
    return finish(low, step, None, activation)
