"""Pooling as steps."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.fuse.kinds import is_image_size
from cnnfast.nn.pool import global_avg_pool2d
from cnnfast.ops.pool2d import avg_pool2d, max_pool2d
from cnnfast.plan.lowering.context import Lowering, Unsupported, lowers, numbers, pair_settings
from cnnfast.plan.nodes import Op
from cnnfast.plan.steps import Step


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
    if output_size not in (1, (1, 1), [1, 1]):
        raise Unsupported(f"its output size is {output_size}; a plan of this version pools to 1×1 only")
    return _global_avg_pool(low, input)


@lowers(global_avg_pool2d)
def _global_avg_pool(low: Lowering, input: fx.Node) -> Step:
    return Step(Op.GLOBAL_AVG_POOL, [low.image(input)])


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
