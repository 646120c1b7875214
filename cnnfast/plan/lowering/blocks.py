"""Calls that stand for whole blocks as steps: a plan has concatenations of its own, without copies too."""

from collections.abc import Iterator

from torch import fx

from cnnfast.nn.dense import dense_layers
from cnnfast.nn.inception import inception
from cnnfast.plan.lowering.context import Lowering, lowers
from cnnfast.plan.lowering.layers import conv_step
from cnnfast.plan.lowering.norms import affine_step, finish
from cnnfast.plan.lowering.pools import avg_pool_step, max_pool_step
from cnnfast.plan.nodes import Op
from cnnfast.plan.steps import Step

_ACTIVATIONS = ("none", "relu", "sigmoid")
_CONV, _MAX_POOL = 0, 1
_STAGE = 9  # words of a stage: kind, activation, kernel, stride and padding as pairs, option


@lowers(inception)
def _inception(low: Lowering, input: fx.Node, weights, biases, branches) -> Step:
    parameters = iter(zip(weights, biases, strict=True))
    outputs = []
    for stages in _decoded(branches):
        step = low.image(input)
        for stage in stages:
            step = _stage(low, step, stage, parameters)
        outputs.append(step)
    return Step(Op.CONCAT, outputs)


def _decoded(branches: list[int]) -> Iterator[list[tuple[int, ...]]]:
    """The stages of every branch."""
    words = iter(branches)
    for _ in range(next(words)):
        yield [tuple(next(words) for _ in range(_STAGE)) for _ in range(next(words))]


def _stage(low: Lowering, source: Step, stage: tuple[int, ...], parameters: Iterator[tuple]) -> Step:
    kind, activation, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, option = stage
    window = ((kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w))
    if kind == _CONV:
        weight, bias = next(parameters)
        pads = (pad_w, pad_w, pad_h, pad_h)
        step = conv_step(low, source, weight, bias, pads, window[1], 1, option)
        name = low.holder(weight)
    else:
        step = max_pool_step(source, *window) if kind == _MAX_POOL else avg_pool_step(source, *window, option)
        name = ""
    step = low.place(step, name)
    return low.place(finish(low, step, None, _ACTIVATIONS[activation]), name)


@lowers(dense_layers)
def _dense_layers(
    low, input, weights, biases, bn_weights, bn_biases, running_means, running_vars, batches_tracked,
    training, track_running_stats, momentum, eps, activation,
) -> Step:  # fmt: skip
    step = low.image(input)
    norms = zip(running_means, running_vars, bn_weights, bn_biases, training, eps, strict=True)
    for weight, bias, norm in zip(weights, biases, norms, strict=True):
        name = low.holder(norm[0])
        new = low.place(affine_step(low, step, *norm), name)
        new = low.place(finish(low, new, None, activation), name)
        half_h, half_w = (size // 2 for size in low.tensor(weight).shape[2:])
        new = conv_step(low, new, weight, bias, (half_w, half_w, half_h, half_h), 1, 1, 1)
        step = low.place(Step(Op.CONCAT, [step, low.place(new, low.holder(weight))]))
    return step
