"""What generated forwards call for normalisation; see runtime.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnfast.fuse.runtime import add_and_activate, adds_elementwise, has_shape_of
from cnnfast.nn.bn_conv import bn_act_conv
from cnnfast.nn.linear_bn import linear_bn_act
from cnnfast.nn.norm import batch_norm_act, local_response_norm
from cnnfast.ops.group_norm2d import group_norm2d, instance_norm2d
from cnnfast.ops.linear import linear
from cnnfast.reference.activation import activate


def bn(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches_tracked: Tensor | None,
    training: bool,
    track_running_stats: bool,
    momentum: float | None,
    eps: float,
    activation: str,
) -> Tensor:
    """BatchNorm2d, + residual (of any shape that broadcasts), activation."""
    fits = residual is None or has_shape_of(residual, x)
    y = batch_norm_act(
        x,
        residual if fits else None,
        weight,
        bias,
        running_mean,
        running_var,
        batches_tracked,
        training,
        track_running_stats,
        momentum,
        eps,
        activation if fits else "none",
    )
    return y if fits else add_and_activate(y, residual, activation)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
) -> Tensor:
    """GroupNorm, activation."""
    if x.dim() != 4:
        return activate(F.group_norm(x, num_groups, weight, bias, eps), activation)
    return group_norm2d(x, num_groups, weight, bias, eps, activation)


def group_norm_in_its_layout(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """GroupNorm in a forward that stays, in the layout of x. PyTorch's own is as fast in the usual one."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return group_norm2d(x, num_groups, weight, bias, eps)
    return F.group_norm(x, num_groups, weight, bias, eps)


def instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    track_running_stats: bool,
    momentum: float | None,
    eps: float,
    activation: str,
) -> Tensor:
    """InstanceNorm2d, activation."""
    if x.dim() != 3 and x.dim() != 4:
        raise ValueError(f"expected 3D or 4D input (got {x.dim()}D input)")
    own = training or not track_running_stats
    step = 0.0 if momentum is None else momentum
    images = x if x.dim() == 4 else x.unsqueeze(0)
    y = instance_norm2d(images, running_mean, running_var, weight, bias, own, step, eps, activation)
    return y if x.dim() == 4 else y.squeeze(0)


def instance_norm_function(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    activation: str,
) -> Tensor:
    """torch.nn.functional.instance_norm, activation."""
    if x.dim() == 4:
        return instance_norm2d(
            x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, activation
        )
    y = F.instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return activate(y, activation)


def bn_conv(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches_tracked: Tensor | None,
    training: bool,
    track_running_stats: bool,
    momentum: float | None,
    eps: float,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
) -> Tensor:
    """BatchNorm2d, activation, Conv2d, + residual (of any shape that broadcasts)."""
    fits = residual is None or adds_elementwise(x, residual, weight, [], stride, padding, dilation)
    y = bn_act_conv(
        x,
        residual if fits else None,
        weight,
        bias,
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        batches_tracked,
        training,
        track_running_stats,
        momentum,
        eps,
        [],
        "constant",
        stride,
        padding,
        dilation,
        groups,
        activation,
    )
    return y if fits else add_and_activate(y, residual, "none")


def linear_bn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches_tracked: Tensor | None,
    training: bool,
    track_running_stats: bool,
    momentum: float | None,
    eps: float,
    activation: str,
) -> Tensor:
    """Linear, BatchNorm1d, activation."""
    if x.dim() != 2:  # (N, C, features): BatchNorm1d normalises dimension 1
        return batch_norm_act(
            linear(x, weight, bias).unsqueeze(-1),
            None,
            bn_weight,
            bn_bias,
            running_mean,
            running_var,
            batches_tracked,
            training,
            track_running_stats,
            momentum,
            eps,
            activation,
        ).squeeze(-1)
    return linear_bn_act(
        x,
        weight,
        bias,
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        batches_tracked,
        training,
        track_running_stats,
        momentum,
        eps,
        activation,
    )


def lrn(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """LocalResponseNorm."""
    if x.dim() != 4:
        return F.local_response_norm(x, size, alpha, beta, k)
    return local_response_norm(x, size, alpha, beta, k)
