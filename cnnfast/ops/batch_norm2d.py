"""BatchNorm2d, residual and activation as one layer, in training and in evaluation."""

from typing import Optional

import torch
from torch import Tensor

from cnnfast import _ext, reference
from cnnfast.ops import _backend
from cnnfast.ops.conv2d_bn_act import _update_running


def _fused(
    input: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    residual: Optional[Tensor],
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        output, mean, var = torch.ops.cnnfast.batch_norm2d(
            input, weight, bias, residual, eps=eps, activation=activation
        )
        if running_mean is not None and running_var is not None:
            count = input.size(0) * input.size(2) * input.size(3)
            _update_running(running_mean, running_var, mean, var, count, momentum)
        return output
    return torch.ops.cnnfast.batch_norm_act(
        input, running_mean, running_var, weight, bias, residual, eps=eps, activation=activation
    )


_batch_norm2d = _fused if _ext.AVAILABLE else reference.batch_norm2d


def batch_norm2d(
    input: Tensor,
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    running_mean: Optional[Tensor] = None,
    running_var: Optional[Tensor] = None,
    residual: Optional[Tensor] = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
) -> Tensor:
    """act(batch_norm(input) + residual), as BatchNorm2d computes it.

    training=True, or no running statistics: the batch's own mean and variance normalise, and the running
    averages move towards them in place by `momentum` (the running variance towards the unbiased one).
    Otherwise the running averages normalise.

    Args:
        input: (N, C, H, W), any strides; CPU: float32 runs the kernels, other floating dtypes ATen.
        weight, bias: (C,) or None (1 and 0).
        running_mean, running_var: (C,), or both None.
        residual: the shape of the input, or None; added before the activation.
        training, momentum: see above.
        activation: "none", "relu" (keeps NaN) or another name of cnnfast.reference.activation.activate.

    Returns:
        (N, C, H, W), differentiable once in input, weight, bias and residual.

    Raises:
        RuntimeError: shapes, dtypes, devices or options that do not fit; names operator, argument and shapes.
        ValueError: one value per channel in training; running averages stay.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167; torch.nn.BatchNorm2d.
    """
    if not torch.jit.is_scripting():
        if _backend.needs_reference(input, input):
            return reference.batch_norm2d(
                input,
                weight,
                bias,
                running_mean,
                running_var,
                residual,
                training,
                momentum,
                eps,
                activation,
            )
    return _batch_norm2d(
        input, weight, bias, running_mean, running_var, residual, training, momentum, eps, activation
    )
