"""Dense block: batch norm, activation and convolution per layer, all layers in one buffer."""

from typing import List, Optional, Tuple

import torch
from torch import Tensor

from cnnfast import _ext, reference
from cnnfast.ops import _backend, _traced
from cnnfast.ops.conv2d_bn_act import _update_running


def _has_none(tensors: List[Optional[Tensor]]) -> bool:
    for tensor in tensors:
        if tensor is not None:
            return False
    return True


def _call(
    input: Tensor,
    weights: List[Tensor],
    biases: List[Optional[Tensor]],
    bn_weights: List[Optional[Tensor]],
    bn_biases: List[Optional[Tensor]],
    means: List[Optional[Tensor]],
    vars: List[Optional[Tensor]],
    eps: float,
    activation: str,
) -> Tuple[Tensor, Tensor, Tensor]:
    if not torch.jit.is_scripting():
        if torch.jit.is_tracing():
            lists = (biases, bn_weights, bn_biases, means, vars)
            return _traced.dense_block(input, weights, *lists, eps=eps, activation=activation)
    return torch.ops.cnnfast.dense_block(
        input, weights, biases, bn_weights, bn_biases, means, vars, eps=eps, activation=activation
    )


def _fused(
    input: Tensor,
    weights: List[Tensor],
    biases: List[Optional[Tensor]],
    bn_weights: List[Optional[Tensor]],
    bn_biases: List[Optional[Tensor]],
    running_means: List[Optional[Tensor]],
    running_vars: List[Optional[Tensor]],
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
) -> Tensor:
    means, vars = running_means, running_vars
    use_batch = training or (_has_none(running_means) and _has_none(running_vars))
    if use_batch:
        means = torch.jit.annotate(List[Optional[Tensor]], [])
        vars = torch.jit.annotate(List[Optional[Tensor]], [])
    output, mean, var = _call(input, weights, biases, bn_weights, bn_biases, means, vars, eps, activation)
    if use_batch:
        count = output.size(0) * output.size(2) * output.size(3)
        for i, weight in enumerate(weights):
            running_mean, running_var = running_means[i], running_vars[i]
            if running_mean is not None and running_var is not None:
                channels = weight.size(1)
                _update_running(running_mean, running_var, mean[:channels], var[:channels], count, momentum)
    return output


_dense_block = _fused if _ext.AVAILABLE else reference.dense_block


def dense_block(
    input: Tensor,
    weights: List[Tensor],
    biases: List[Optional[Tensor]],
    bn_weights: List[Optional[Tensor]],
    bn_biases: List[Optional[Tensor]],
    running_means: List[Optional[Tensor]],
    running_vars: List[Optional[Tensor]],
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "relu",
) -> Tensor:
    """Layer i convolves act(batch_norm(all channels so far)) and adds its channels behind them.

    One buffer holds the result; the copy of the input into its first channels is the only one. Statistics of
    a channel are computed once, when it has been written, and serve all later layers.

    training=True, or no running statistics at all: the batch's own mean and variance normalise, and the
    running averages of every layer move towards them in place by `momentum` (the running variances towards
    the unbiased ones). Otherwise the running averages normalise; then every layer must have them.

    Args:
        input: (N, C, H, W), any strides; CPU: float32 runs the kernels, other floating dtypes ATen.
        weights: of layer i (growth, channels so far, kh, kw), kh and kw odd; stride 1, padding kh // 2 and
            kw // 2; dtype and device of the input; on the CPU float32 ones go with bfloat16 images, too.
        biases: (growth,) or None, one entry per layer, like all lists that follow.
        bn_weights, bn_biases, running_means, running_vars: (channels so far,) or None.
        training, momentum, eps: see above.
        activation: "none", "relu" (keeps NaN), "sigmoid" or another whose output determines its gradient.

    Returns:
        (N, C + sum of growths, H, W): the input's channels, then every layer's. Differentiable once in input,
        weights, biases, bn_weights and bn_biases.

    Raises:
        RuntimeError: shapes, dtypes, devices or options that do not fit; names operator, layer, argument and
            shapes.
        ValueError: one value per channel in training; running averages stay.

    Source: Huang et al. 2017, arXiv:1608.06993, as in the course notes (DenseBlock).
    """
    if not torch.jit.is_scripting():
        if _backend.needs_reference(input, weights[0] if weights else input):
            return reference.dense_block(
                input,
                weights,
                biases,
                bn_weights,
                bn_biases,
                running_means,
                running_vars,
                training,
                momentum,
                eps,
                activation,
            )
    return _dense_block(
        input,
        weights,
        biases,
        bn_weights,
        bn_biases,
        running_means,
        running_vars,
        training,
        momentum,
        eps,
        activation,
    )
