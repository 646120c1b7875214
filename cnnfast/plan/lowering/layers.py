"""Convolution, linear layer, batch norm and pooling as steps."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.nn._holders import pad_mode, split_padding
from cnnfast.nn.conv import conv_act
from cnnfast.nn.conv_bn import conv_bn_act
from cnnfast.ops.linear import linear
from cnnfast.ops.pool2d import avg_pool2d, max_pool2d
from cnnfast.plan.fold import batch_norm_as_affine
from cnnfast.plan.lowering.context import ACTS, Lowering, Unsupported, is_size, lowers, numbers
from cnnfast.plan.nodes import Op
from cnnfast.plan.steps import Step


def _conv(low: Lowering, x, weight, bias, pads, stride, dilation, groups) -> Step:
    """pads: left, right, top, bottom, as torch.nn.functional.pad has them."""
    source, weight = low.image(x), low.tensor(weight)
    left, right, top, bottom = pads
    settings = {
        **dict(zip(("out_channels", "group_channels", "kernel_h", "kernel_w"), weight.shape, strict=True)),
        **_pair_settings("stride", stride),
        **_pair_settings("dilation", dilation),
        **{"pad_left": left, "pad_right": right, "pad_top": top, "pad_bottom": bottom},
        "groups": groups,
    }
    _pin_channels(source, weight.shape[1] * groups)
    return Step(Op.CONV2D, [source], settings, {"weight": weight, "bias": low.tensor(bias)})


def _pair_settings(name: str, value: object) -> dict[str, int]:
    h, w = numbers(value, name)
    return {f"{name}_h": h, f"{name}_w": w}


def _pin_channels(source: Step, channels: int) -> None:
    """An external input with one right number of channels says so itself."""
    if source.op is Op.INPUT:
        source.settings["channels"] = channels


def _zero_pads(pad_first: list[int], mode: str, padding: object) -> tuple[int, ...]:
    if pad_first and mode != "constant":
        raise Unsupported(f"padding_mode '{mode}' has no node in a plan of this version")
    h, w = numbers(padding, "padding")
    left, right, top, bottom = pad_first or (0, 0, 0, 0)
    return left + w, right + w, top + h, bottom + h


@lowers(modules=[nn.Conv2d])
def _conv_module(low: Lowering, conv: nn.Conv2d, x: fx.Node) -> Step:
    pad_first, padding = split_padding(conv)
    pads = _zero_pads(pad_first, pad_mode(conv), padding)
    return _conv(low, x, conv.weight, conv.bias, pads, conv.stride, conv.dilation, conv.groups)


@lowers(torch.conv2d, F.conv2d)
def _conv_function(
    low: Lowering, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
) -> Step:
    if isinstance(padding, str):
        raise Unsupported("its padding is a word: use nn.Conv2d, or write the padding as numbers")
    return _conv(low, input, weight, bias, _zero_pads([], "constant", padding), stride, dilation, groups)


@lowers(conv_act)
def _conv_act(
    low, input, residual, weight, bias, pad_first, pad_mode, stride, padding, dilation, groups, activation
) -> Step:
    pads = _zero_pads(pad_first, pad_mode, padding)
    step = _conv(low, input, weight, bias, pads, stride, dilation, groups)
    return _finish(low, step, residual, activation)


@lowers(conv_bn_act)
def _conv_bn_act(
    low, input, residual, weight, bias, bn_weight, bn_bias, running_mean, running_var, batches_tracked,
    training, track_running_stats, momentum, eps, pad_first, pad_mode, stride, padding, dilation, groups,
    activation,
) -> Step:  # fmt: skip
    step = _conv(low, input, weight, bias, _zero_pads(pad_first, pad_mode, padding), stride, dilation, groups)
    step = _affine(low, low.place(step), running_mean, running_var, bn_weight, bn_bias, training, eps)
    return _finish(low, step, residual, activation)


def _finish(low: Lowering, step: Step, residual, activation: str) -> Step:
    """Residual and activation as steps of their own; folding puts them back together."""
    if residual is not None:
        step = Step(Op.ADD, [low.place(step), low.image(residual)])
    if activation == "none":
        return step
    return Step(Op.ACTIVATION, [low.place(step)], activation=ACTS[activation])


def _affine(low: Lowering, source: Step, mean, var, weight, bias, training, eps) -> Step:
    mean, var = low.tensor(mean), low.tensor(var)
    if training is not False or mean is None or var is None:
        raise Unsupported("it normalises with the statistics of the batch in evaluation too")
    scale, shift = batch_norm_as_affine(mean, var, low.tensor(weight), low.tensor(bias), eps)
    return Step(Op.AFFINE, [source], {"channels": len(scale)}, {"scale": scale, "shift": shift})


@lowers(modules=[nn.BatchNorm1d, nn.BatchNorm2d])
def _batch_norm_module(low: Lowering, bn: nn.Module, x: fx.Node) -> Step:
    return _batch_norm(low, x, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.training, eps=bn.eps)


@lowers(F.batch_norm)
def _batch_norm(
    low, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> Step:
    source = low.step(input)
    rank = len(low.shapes[input])
    if rank != 4 and not (rank == 2 and source.op is Op.LINEAR):
        raise Unsupported(
            f"its input has shape {list(low.shapes[input])}: a plan knows it behind a linear layer only"
        )
    return _affine(low, source, running_mean, running_var, weight, bias, training, eps)


@lowers(modules=[nn.Linear])
def _linear_module(low: Lowering, layer: nn.Linear, x: fx.Node) -> Step:
    return _linear(low, x, layer.weight, layer.bias)


@lowers(F.linear)
def _linear(low: Lowering, input, weight, bias=None) -> Step:
    source, weight = low.step(input), low.tensor(weight)
    if len(low.shapes[input]) != 2:
        raise Unsupported(
            f"its input has shape {list(low.shapes[input])}, not (N, features): flatten it first"
        )
    _pin_channels(source, weight.shape[1])
    settings = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    return Step(Op.LINEAR, [source], settings, {"weight": weight, "bias": low.tensor(bias)})


@lowers(linear)
def _linear_act(low: Lowering, input, weight, bias=None, activation="none") -> Step:
    return _finish(low, _linear(low, input, weight, bias), None, activation)


@lowers(modules=[nn.MaxPool2d])
def _max_pool_module(low: Lowering, pool: nn.MaxPool2d, x: fx.Node) -> Step:
    return _max_pool(
        low,
        x,
        pool.kernel_size,
        pool.stride,
        pool.padding,
        pool.dilation,
        pool.ceil_mode,
        pool.return_indices,
    )


@lowers(F.max_pool2d, torch.max_pool2d, max_pool2d)
def _max_pool(
    low, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> Step:
    if return_indices:
        raise Unsupported("it returns indices too")
    settings = {
        **_window(kernel_size, stride, padding),
        **_pair_settings("dilation", dilation),
        "ceil_mode": int(ceil_mode),
    }
    return Step(Op.MAX_POOL2D, [low.image(input)], settings)


@lowers(modules=[nn.AvgPool2d])
def _avg_pool_module(low: Lowering, pool: nn.AvgPool2d, x: fx.Node) -> Step:
    window = (pool.kernel_size, pool.stride, pool.padding)
    return _avg_pool(low, x, *window, pool.ceil_mode, pool.count_include_pad, pool.divisor_override)


@lowers(F.avg_pool2d, avg_pool2d)
def _avg_pool(
    low,
    input,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
) -> Step:
    if _is_image_size(kernel_size, low, input):
        return _global_avg_pool(low, input)
    settings = {
        **_window(kernel_size, stride, padding),
        "ceil_mode": int(ceil_mode),
        "count_include_pad": int(count_include_pad),
        "divisor_override": divisor_override or 0,
    }
    return Step(Op.AVG_POOL2D, [low.image(input)], settings)


def _window(kernel_size, stride, padding) -> dict[str, int]:
    stride = kernel_size if stride in (None, [], ()) else stride
    h, w = numbers(padding, "padding")
    return {
        **_pair_settings("kernel", kernel_size),
        **_pair_settings("stride", stride),
        "pad_h": h,
        "pad_w": w,
    }


def _is_image_size(value: object, low: Lowering, x: fx.Node) -> bool:
    """x.size()[2:] or x.shape[2:], the notes' global average pooling."""
    if not isinstance(value, fx.Node) or value.op != "call_function" or len(value.args) != 2:
        return False
    size, index = value.args
    return is_size(size) and size.args[0] is x and index in (slice(2, None), slice(2, 4), slice(-2, None))


@lowers(modules=[nn.AdaptiveAvgPool2d])
def _adaptive_avg_pool_module(low: Lowering, pool: nn.AdaptiveAvgPool2d, x: fx.Node) -> Step:
    return _adaptive_avg_pool(low, x, pool.output_size)


@lowers(F.adaptive_avg_pool2d)
def _adaptive_avg_pool(low: Lowering, input, output_size) -> Step:
    if output_size not in (1, (1, 1), [1, 1]):
        raise Unsupported(f"its output size is {output_size}; a plan of this version pools to 1×1 only")
    return _global_avg_pool(low, input)


def _global_avg_pool(low: Lowering, x: fx.Node) -> Step:
    return Step(Op.GLOBAL_AVG_POOL, [low.image(x)])


@lowers(torch.mean, methods=["mean"])
def _mean(low: Lowering, input, dim=None, keepdim=False, dtype=None) -> Step:
    rank = len(low.shapes[input])
    dims = sorted(d % rank for d in dim) if isinstance(dim, (tuple, list)) else dim
    if rank != 4 or dims != [2, 3] or dtype is not None:
        raise Unsupported(
            f"a plan of this version takes the mean of images only, over dimensions (2, 3), not {dim}"
        )
    pooled = _global_avg_pool(low, input)
    return pooled if keepdim else Step(Op.FLATTEN, [low.place(pooled)])
