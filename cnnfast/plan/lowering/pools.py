"""Pooling as steps."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.fuse.foreign import pads_to_same
from cnnfast.fuse.kinds import is_image_size
from cnnfast.nn.pool import global_avg_pool2d
from cnnfast.ops.pool2d import avg_pool2d, max_pool2d
from cnnfast.plan.lowering.context import (
    Lowering,
    Respelled,
    Unsupported,
    Value,
    lowers,
    numbers,
    pair_settings,
)
from cnnfast.plan.lowering.gates import largest_channel, mean_over_channels
from cnnfast.plan.nodes import SAME, Op
from cnnfast.plan.steps import Step


@lowers(modules=[nn.MaxPool2d])
def _max_pool_module(low: Lowering, pool: nn.MaxPool2d, x: fx.Node) -> Step:
    window = (pool.kernel_size, pool.stride, SAME if pads_to_same(pool) else pool.padding)
    return _max_pool(low, x, *window, pool.dilation, pool.ceil_mode, pool.return_indices)


@lowers(F.max_pool2d, torch.max_pool2d, max_pool2d)
def _max_pool(
    low, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> Step:
    if return_indices:
        raise Unsupported("it returns indices too")
    return max_pool_step(low.image(input), kernel_size, stride, padding, dilation, ceil_mode)


def max_pool_step(source: Step, kernel_size, stride, padding, dilation=1, ceil_mode=False) -> Step:
    settings = {
        **_window(kernel_size, stride, padding),
        **pair_settings("dilation", dilation),
        "ceil_mode": int(ceil_mode),
    }
    return Step(Op.MAX_POOL2D, [source], settings)


@lowers(modules=[nn.AvgPool2d])
def _avg_pool_module(low: Lowering, pool: nn.AvgPool2d, x: fx.Node) -> Step:
    if pads_to_same(pool):  # by zeros in front of the pooling, which counts them
        return avg_pool_step(low.image(x), pool.kernel_size, pool.stride, SAME, True)
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
    if is_image_size(kernel_size, input) and padding in (0, (0, 0), [0, 0]) and divisor_override is None:
        return _global_avg_pool(low, input)
    window = (kernel_size, stride, padding)
    return avg_pool_step(low.image(input), *window, count_include_pad, ceil_mode, divisor_override)


def avg_pool_step(
    source: Step, kernel_size, stride, padding, count_include_pad, ceil_mode=False, divisor_override=None
) -> Step:
    settings = {
        **_window(kernel_size, stride, padding),
        "ceil_mode": int(ceil_mode),
        "count_include_pad": int(count_include_pad),
        "divisor_override": divisor_override or 0,
    }
    return Step(Op.AVG_POOL2D, [source], settings)


def _window(kernel_size, stride, padding) -> dict[str, int]:
    stride = kernel_size if stride in (None, [], ()) else stride
    h, w = numbers(padding, "padding")
    return {
        **pair_settings("kernel", kernel_size),
        **pair_settings("stride", stride),
        "pad_h": h,
        "pad_w": w,
    }


@lowers(modules=[nn.AdaptiveAvgPool2d])
def _adaptive_avg_pool_module(low: Lowering, pool: nn.AdaptiveAvgPool2d, x: fx.Node) -> Step:
    return _adaptive_avg_pool(low, x, pool.output_size)


@lowers(F.adaptive_avg_pool2d)
def _adaptive_avg_pool(low: Lowering, input, output_size) -> Step:
    sizes = _output_size(output_size)
    if sizes == (1, 1):
        return _global_avg_pool(low, input)
    return Step(
        Op.ADAPTIVE_AVG_POOL2D, [low.image(input)], dict(zip(("height", "width"), sizes, strict=True))
    )


def _output_size(output_size: object) -> tuple[int, int]:
    """0 stands for the input's own size."""
    pair = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if len(pair) != 2 or not all(size is None or (isinstance(size, int) and size > 0) for size in pair):
        raise Unsupported(f"its output size is {output_size}: write one or two numbers")
    return pair[0] or 0, pair[1] or 0


@lowers(modules=[nn.AdaptiveMaxPool2d])
def _adaptive_max_pool_module(low: Lowering, pool: nn.AdaptiveMaxPool2d, x: fx.Node) -> Step:
    return _adaptive_max_pool(low, x, pool.output_size, pool.return_indices)


@lowers(F.adaptive_max_pool2d)
def _adaptive_max_pool(low: Lowering, input, output_size, return_indices=False) -> Step:
    if return_indices:
        raise Unsupported("it returns indices too")
    sizes = dict(zip(("height", "width"), _output_size(output_size), strict=True))
    return Step(Op.ADAPTIVE_MAX_POOL2D, [low.image(input)], sizes)


@lowers(torch.amax, methods=["amax"])
def _amax(low: Lowering, input, dim=None, keepdim=False) -> Value:
    largest = largest_channel(low, input, dim, keepdim)
    if largest is not None:
        return largest
    _check_whole_images(low, input, dim)
    return _kept_or_flat(low, input, _max_of_images(low.row_or_image(input)), keepdim)


def _max_of_images(source: Step) -> Step:
    return Step(Op.ADAPTIVE_MAX_POOL2D, [source], {"height": 1, "width": 1})


def _check_whole_images(low: Lowering, input: fx.Node, dim: object) -> None:
    rank = len(low.shapes[input])
    dims = sorted(d % rank for d in (dim if isinstance(dim, (tuple, list)) else [dim]) if isinstance(d, int))
    if (rank, dims) != (4, [2, 3]) and not (low.is_line(input) and dims == [2]):
        raise Unsupported(
            "a plan of this version reduces images over dimensions (2, 3), and lines over their length, not "
            f"{dim}"
        )


def _kept_or_flat(low: Lowering, input: fx.Node, pooled: Step, keepdim: bool) -> Value:
    if not keepdim:
        return Step(Op.FLATTEN, [low.place(pooled)])
    return Respelled("line", pooled) if low.is_line(input) else pooled


@lowers(global_avg_pool2d)
def _global_avg_pool(low: Lowering, input: fx.Node) -> Step:
    return Step(Op.GLOBAL_AVG_POOL, [low.image(input)])


@lowers(torch.mean, methods=["mean"])
def _mean(low: Lowering, input, dim=None, keepdim=False, dtype=None) -> Value:
    found, rank = low.value(input), len(low.shapes[input])
    if dtype is not None:
        raise Unsupported("it changes the dtype")
    over_channels = mean_over_channels(low, input, dim, keepdim)
    if over_channels is not None:
        return over_channels
    if isinstance(found, Respelled) and found.kind == "nhwc":
        if not isinstance(dim, (tuple, list)) or sorted(d % rank for d in dim) != [1, 2]:
            raise Unsupported(f"it takes the mean of channels-last images over {dim}, not (1, 2)")
        pooled = Step(Op.GLOBAL_AVG_POOL, [found.step])
        return Respelled("nhwc", pooled) if keepdim else _kept_or_flat(low, input, pooled, False)
    _check_whole_images(low, input, dim)
    return _kept_or_flat(low, input, Step(Op.GLOBAL_AVG_POOL, [low.row_or_image(input)]), keepdim)
