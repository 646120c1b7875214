"""Layers along one side, of tensors (N, C, L), as steps: within a plan these are images of one row."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.nn._holders import pad_mode
from cnnfast.plan.lowering.context import Lowering, Respelled, Unsupported, Value, lowers, side_of
from cnnfast.plan.lowering.gates import channel_conv
from cnnfast.plan.lowering.layers import conv_step
from cnnfast.plan.lowering.padding import mirrored_step, padding_step
from cnnfast.plan.lowering.pools import avg_pool_step, max_pool_step
from cnnfast.plan.lowering.transposed import transposed
from cnnfast.plan.nodes import Op
from cnnfast.plan.steps import Step


def _one(value: object, what: str) -> int:
    """A plain number from an argument that is one, or a list of one."""
    found = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(found) != 1 or not isinstance(found[0], int):
        raise Unsupported(f"its {what} is computed in the forward: write it as a number")
    return found[0]


@lowers(modules=[nn.Conv1d], starts_lines=True)
def _conv_module(low: Lowering, conv: nn.Conv1d, x: fx.Node) -> Value:
    if not low.is_line(x):
        return channel_conv(low, conv, x)
    sides = tuple(conv._reversed_padding_repeated_twice)
    window = (conv.stride, conv.dilation, conv.groups)
    if conv.padding_mode != "zeros":
        source = low.place(mirrored_step(low.line(x), [*sides, 0, 0], pad_mode(conv)))
        return _conv(low, source, conv.weight, conv.bias, (0, 0), *window)
    return _conv(low, low.line(x), conv.weight, conv.bias, sides, *window)


@lowers(F.conv1d, torch.conv1d, starts_lines=True)
def _conv_function(
    low: Lowering, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
) -> Value:
    if isinstance(padding, str):
        raise Unsupported("its padding is a word: use nn.Conv1d, or write the padding as a number")
    sides = (_one(padding, "padding"),) * 2
    return _conv(low, low.line(input), weight, bias, sides, stride, dilation, low.channel_number(groups))


def _conv(low: Lowering, source: Step, weight, bias, sides: tuple, stride, dilation, groups: int) -> Value:
    """sides: zeros on the left and on the right."""
    weight = low.tensor(weight).unsqueeze(2)
    window = ((1, _one(stride, "stride")), (1, _one(dilation, "dilation")))
    return Respelled("line", conv_step(low, source, weight, bias, (*sides, 0, 0), *window, groups))


@lowers(modules=[nn.ConvTranspose1d], starts_lines=True)
def _transposed_module(low: Lowering, conv: nn.ConvTranspose1d, x: fx.Node) -> Value:
    window = (conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)
    return _transposed(low, x, conv.weight, conv.bias, *window)


@lowers(F.conv_transpose1d, torch.conv_transpose1d, starts_lines=True)
def _transposed(
    low: Lowering, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
) -> Value:
    weight = low.tensor(weight).unsqueeze(2)
    stride, dilation = _one(stride, "stride"), _one(dilation, "dilation")
    padding, more = _one(padding, "padding"), _one(output_padding, "output_padding")
    window = ((1, stride), (0, padding), (0, more), low.channel_number(groups), (1, dilation))
    return Respelled("line", transposed(low, input, weight, low.tensor(bias), *window))


@lowers(modules=[nn.MaxPool1d], starts_lines=True)
def _max_pool_module(low: Lowering, pool: nn.MaxPool1d, x: fx.Node) -> Value:
    window = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return _max_pool(low, x, *window, pool.ceil_mode, pool.return_indices)


@lowers(F.max_pool1d, torch.max_pool1d, starts_lines=True)
def _max_pool(
    low: Lowering, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False,
    return_indices=False,
) -> Value:  # fmt: skip
    if return_indices:
        raise Unsupported("it returns indices too")
    if _covers(kernel_size, input) and padding in (0, [0], (0,)):
        return _pooled(low, Op.ADAPTIVE_MAX_POOL2D, input)
    window = _window(kernel_size, stride, padding)
    dilation = (1, _one(dilation, "dilation"))
    return Respelled("line", max_pool_step(low.line(input), *window, dilation, ceil_mode))


@lowers(modules=[nn.AvgPool1d], starts_lines=True)
def _avg_pool_module(low: Lowering, pool: nn.AvgPool1d, x: fx.Node) -> Value:
    window = (pool.kernel_size, pool.stride, pool.padding)
    return _avg_pool(low, x, *window, pool.ceil_mode, pool.count_include_pad)


@lowers(F.avg_pool1d, starts_lines=True)
def _avg_pool(
    low: Lowering, input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True
) -> Value:
    if _covers(kernel_size, input) and padding in (0, [0], (0,)):
        return Respelled("line", Step(Op.GLOBAL_AVG_POOL, [low.line(input)]))
    window = _window(kernel_size, stride, padding)
    return Respelled("line", avg_pool_step(low.line(input), *window, count_include_pad, ceil_mode))


def _covers(kernel_size: object, x: fx.Node) -> bool:
    """Whether a window is as long as the line, whatever its length: x.size(2), x.shape[-1]."""
    size = kernel_size[0] if isinstance(kernel_size, (tuple, list)) and len(kernel_size) == 1 else kernel_size
    return side_of(size, (2, -1)) is x


def _window(kernel_size: object, stride: object, padding: object) -> list[tuple[int, int]]:
    stride = kernel_size if stride in (None, [], ()) else stride
    return [
        (1, _one(kernel_size, "kernel size")), (1, _one(stride, "stride")), (0, _one(padding, "padding")),
    ]  # fmt: skip


@lowers(modules=[nn.AdaptiveAvgPool1d], starts_lines=True)
def _adaptive_avg_pool_module(low: Lowering, pool: nn.AdaptiveAvgPool1d, x: fx.Node) -> Value:
    return _adaptive_avg_pool(low, x, pool.output_size)


@lowers(F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d, starts_lines=True)
def _adaptive_avg_pool(low: Lowering, input, output_size) -> Value:
    size = _one(output_size, "output size")
    if size == 1:
        return Respelled("line", Step(Op.GLOBAL_AVG_POOL, [low.line(input)]))
    return _pooled(low, Op.ADAPTIVE_AVG_POOL2D, input, size)


@lowers(modules=[nn.AdaptiveMaxPool1d], starts_lines=True)
def _adaptive_max_pool_module(low: Lowering, pool: nn.AdaptiveMaxPool1d, x: fx.Node) -> Value:
    return _adaptive_max_pool(low, x, pool.output_size, pool.return_indices)


@lowers(F.adaptive_max_pool1d, starts_lines=True)
def _adaptive_max_pool(low: Lowering, input, output_size, return_indices=False) -> Value:
    if return_indices:
        raise Unsupported("it returns indices too")
    return _pooled(low, Op.ADAPTIVE_MAX_POOL2D, input, _one(output_size, "output size"))


def _pooled(low: Lowering, op: Op, x: fx.Node, size: int = 1) -> Value:
    return Respelled("line", Step(op, [low.line(x)], {"height": 1, "width": size}))


@lowers(modules=[nn.ZeroPad1d, nn.ConstantPad1d], starts_lines=True)
def _constant_pad_module(low: Lowering, layer: nn.ConstantPad1d, x: fx.Node) -> Value:
    return Respelled("line", padding_step(low, low.line(x), [*layer.padding, 0, 0], layer.value))


@lowers(modules=[nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d], starts_lines=True)
def _mirror_pad_module(low: Lowering, layer: nn.Module, x: fx.Node) -> Value:
    modes = {nn.ReflectionPad1d: "reflect", nn.ReplicationPad1d: "replicate", nn.CircularPad1d: "circular"}
    return Respelled("line", mirrored_step(low.line(x), [*layer.padding, 0, 0], modes[type(layer)]))
