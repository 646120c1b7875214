"""Conv2d, BatchNorm2d, residual and activation as one layer, in training and in evaluation."""

from typing import List, Optional

import torch
from torch import Tensor

from cnnfast import _ext, reference
from cnnfast.ops.conv2d import conv2d
from cnnfast.ops.conv2d_batch_norm import conv2d_batch_norm


def _update_running(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int, momentum: float
):
    """Move the running averages towards the batch's statistics, in place, as torch.nn.BatchNorm2d does.

    An empty batch has none; a single value per channel is an error before it comes to this.
    """
    if count == 0:
        return
    unbiased = count / (count - 1)
    running_mean.mul_(1.0 - momentum).add_(mean, alpha=momentum)
    running_var.mul_(1.0 - momentum).add_(var, alpha=momentum * unbiased)


def _fold(
    bias: Optional[Tensor],
    bn_weight: Optional[Tensor],
    bn_bias: Optional[Tensor],
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    dtype: torch.dtype,
):
    """Batch normalisation in eval mode as a factor and a shift of the convolution without bias.

    Computed in the running averages' own type and then rounded, as they may be float32 beside bfloat16
    weights.
    """
    scale = torch.rsqrt(running_var + eps)
    if bn_weight is not None:
        scale = scale * bn_weight
    # Few calls: on a GPU each is a kernel of its own before the convolution's.
    center = running_mean if bias is None else running_mean - bias
    shift = -center * scale if bn_bias is None else torch.addcmul(bn_bias, center, scale, value=-1.0)
    return scale.to(dtype), shift.to(dtype)


def _fused(
    input: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    bn_weight: Optional[Tensor],
    bn_bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    residual: Optional[Tensor],
    training: bool,
    momentum: float,
    eps: float,
    stride: List[int],
    padding: List[int],
    dilation: List[int],
    groups: int,
    activation: str,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        output, mean, var = conv2d_batch_norm(
            input,
            weight,
            bias,
            bn_weight,
            bn_bias,
            residual,
            stride,
            padding,
            dilation,
            groups,
            eps,
            activation,
        )
        count = output.size(0) * output.size(2) * output.size(3)
        if running_mean is not None and running_var is not None:
            _update_running(running_mean, running_var, mean, var, count, momentum)
        return output
    scale, shift = _fold(bias, bn_weight, bn_bias, running_mean, running_var, eps, weight.dtype)
    return conv2d(input, weight, shift, scale, residual, stride, padding, dilation, groups, activation)


_conv2d_bn_act = _fused if _ext.AVAILABLE else reference.conv2d_bn_act


def conv2d_bn_act(
    input: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    bn_weight: Optional[Tensor] = None,
    bn_bias: Optional[Tensor] = None,
    running_mean: Optional[Tensor] = None,
    running_var: Optional[Tensor] = None,
    residual: Optional[Tensor] = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: List[int] = (1, 1),
    padding: List[int] = (0, 0),
    dilation: List[int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
) -> Tensor:
    """act(batch_norm(conv(input, weight, bias)) + residual), as Conv2d and BatchNorm2d compute it.

    training=True, or no running statistics: the batch's own mean and variance normalise, and the running
    averages move towards them in place by `momentum` (the running variance towards the unbiased one).
    Otherwise the running averages normalise, folded into the convolution's scale and bias.

    Args:
        input: (N, Ci, H, W), any strides; CPU: float32 runs the kernels, other floating dtypes ATen.
        weight: (Co, Ci / groups, kh, kw), dtype and device of the input; on the CPU float32 weights and
            biases go with bfloat16 images, too.
        bias, bn_weight, bn_bias: (Co,) or None (0, 1 and 0).
        running_mean, running_var: (Co,), or both None.
        residual: the shape of the result, or None; added before the activation.
        training, momentum: see above.
        stride, padding, dilation: (vertical, horizontal); outside torch.jit.script one int may stand for
            both.
        activation: "none", "relu" (keeps NaN) or another name of cnnfast.reference.activation.activate.

    Returns:
        (N, Co, Ho, Wo), differentiable once.

    Raises:
        RuntimeError: shapes, dtypes, devices or options that do not fit; names operator, argument and shapes.
        ValueError: one value per channel in training; running averages stay.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167; torch.nn.BatchNorm2d.
    """
    return _conv2d_bn_act(
        input,
        weight,
        bias,
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        residual,
        training,
        momentum,
        eps,
        stride,
        padding,
        dilation,
        groups,
        activation,
    )
