"""Normalisation as steps; sums and activations, which stand behind many layers."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.nn.norm import batch_norm_act, local_response_norm
from cnnfast.plan.fold import batch_norm_as_affine
from cnnfast.plan.lowering.context import (
    ACTS,
    Lowering,
    Respelled,
    Unsupported,
    Value,
    lowers,
    respell,
)
from cnnfast.plan.lowering.pixels import check_features_of_one_pixel
from cnnfast.plan.nodes import Op, fraction_word
from cnnfast.plan.steps import Step


def affine_step(low: Lowering, source: Step, mean, var, weight, bias, training, eps) -> Step:
    mean, var = low.tensor(mean), low.tensor(var)
    if training is not False or mean is None or var is None:
        raise Unsupported("it normalises with the statistics of the batch in evaluation too")
    scale, shift = batch_norm_as_affine(mean, var, low.tensor(weight), low.tensor(bias), eps)
    return Step(Op.AFFINE, [source], {"channels": len(scale)}, {"scale": scale, "shift": shift})


def finish(low: Lowering, step: Step, residual, activation: str) -> Step:
    """Residual and activation as steps of their own; folding puts them back together."""
    if residual is not None:
        step = Step(Op.ADD, [low.place(step), low.image(residual)])
    if activation == "none":
        return step
    return Step(Op.ACTIVATION, [low.place(step)], activation=ACTS[activation])


@lowers(modules=[nn.BatchNorm1d, nn.BatchNorm2d], lines=True)
def _batch_norm_module(low: Lowering, bn: nn.Module, x: fx.Node) -> Step:
    return _batch_norm(low, x, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.training, eps=bn.eps)


@lowers(F.batch_norm, lines=True)
def _batch_norm(
    low, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> Step:
    source = low.step(input)
    shape = low.shape(input)
    if len(shape) not in (2, 4) and not low.is_line(input):
        raise Unsupported(f"its input has shape {shape}: a plan knows images, lines and features")
    if len(shape) == 2:
        check_features_of_one_pixel(source)
    return affine_step(low, source, running_mean, running_var, weight, bias, training, eps)


@lowers(batch_norm_act)
def _batch_norm_act(
    low, input, residual, weight, bias, running_mean, running_var, batches_tracked, training,
    track_running_stats, momentum, eps, activation,
) -> Step:  # fmt: skip
    step = affine_step(low, low.image(input), running_mean, running_var, weight, bias, training, eps)
    return finish(low, step, residual, activation)


@lowers(modules=[nn.LocalResponseNorm])
def _local_response_norm_module(low: Lowering, norm: nn.LocalResponseNorm, x: fx.Node) -> Step:
    return _local_response_norm(low, x, norm.size, norm.alpha, norm.beta, norm.k)


@lowers(F.local_response_norm, local_response_norm)
def _local_response_norm(low: Lowering, input, size, alpha=1e-4, beta=0.75, k=1.0) -> Step:
    if not all(isinstance(value, (int, float)) for value in (size, alpha, beta, k)):
        raise Unsupported("its size, alpha, beta or k is computed in the forward: write it as a number")
    settings = {
        "size": size,
        "alpha": fraction_word(alpha),
        "beta": fraction_word(beta),
        "k": fraction_word(k),
    }
    return Step(Op.LOCAL_RESPONSE_NORM, [low.image(input)], settings)


@lowers(modules=[nn.LayerNorm])
def _layer_norm_module(low: Lowering, norm: nn.LayerNorm, x: fx.Node) -> Value:
    return _layer_norm(low, x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


@lowers(F.layer_norm, torch.layer_norm)
def _layer_norm(low: Lowering, input, normalized_shape, weight=None, bias=None, eps=1e-5, _=False) -> Value:
    found, shape = low.value(input), low.shape(input)
    channels_last = isinstance(found, Respelled) and found.kind == "nhwc"
    features = len(shape) == 2 and isinstance(found, Step)
    if not (channels_last or features) or tuple(normalized_shape) != (shape[-1],):
        raise Unsupported(
            f"it normalises {list(normalized_shape)} of {shape}: a plan knows the channels of "
            "x.permute(0, 2, 3, 1), or features"
        )
    source = found.step if isinstance(found, Respelled) else found
    settings = {"channels": shape[-1], "eps": fraction_word(eps)}
    constants = {"weight": low.tensor(weight), "bias": low.tensor(bias)}
    return respell(found, Step(Op.LAYER_NORM, [source], settings, constants))


@lowers(modules=[nn.GroupNorm], lines=True)
def _group_norm_module(low: Lowering, norm: nn.GroupNorm, x: fx.Node) -> Step:
    return _group_norm(low, x, norm.num_groups, norm.weight, norm.bias, norm.eps)


@lowers(F.group_norm, torch.group_norm, lines=True)
def _group_norm(low: Lowering, input, num_groups, weight=None, bias=None, eps=1e-5, _=False) -> Step:
    source = low.image(input)
    settings = {"channels": low.shape(input)[1], "groups": low.channel_number(num_groups)}
    settings["eps"] = fraction_word(eps)
    constants = {"weight": low.tensor(weight), "bias": low.tensor(bias)}
    return Step(Op.GROUP_NORM, [source], settings, constants)


@lowers(modules=[nn.InstanceNorm1d, nn.InstanceNorm2d], lines=True)
def _instance_norm_module(low: Lowering, norm: nn.Module, x: fx.Node) -> Step:
    own = norm.running_mean is None
    return _instance_norm(
        low, x, norm.running_mean, norm.running_var, norm.weight, norm.bias, own, norm.momentum, norm.eps
    )


@lowers(F.instance_norm, lines=True)
def _instance_norm(
    low, input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True,
    momentum=0.1, eps=1e-5,
) -> Step:  # fmt: skip
    """Each channel of an image is a group of its own, or has statistics of the past."""
    if use_input_stats is True:
        return _group_norm(low, input, low.shape(input)[1], weight, bias, eps)
    return affine_step(low, low.image(input), running_mean, running_var, weight, bias, False, eps)
