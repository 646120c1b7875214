"""BatchNorm2d and activation on the way into a Conv2d: the pre-activation order of ResNet v2 and DenseNet."""

from typing import List, Optional

import torch
from torch import Tensor

from cnnfast import _ext, reference
from cnnfast.ops import _backend
from cnnfast.ops.conv2d_bn_act import _update_running


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
    pre_activation: str,
) -> Tensor:
    use_batch = training or running_mean is None or running_var is None
    output, mean, var = torch.ops.cnnfast.bn_act_conv2d(
        input,
        weight,
        bias,
        bn_weight,
        bn_bias,
        None if use_batch else running_mean,
        None if use_batch else running_var,
        residual,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        eps=eps,
        pre_activation=pre_activation,
    )
    if use_batch and running_mean is not None and running_var is not None:
        count = input.size(0) * input.size(2) * input.size(3)
        _update_running(running_mean, running_var, mean, var, count, momentum)
    return output


_bn_act_conv2d = _fused if _ext.AVAILABLE else reference.bn_act_conv2d


def bn_act_conv2d(
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
    pre_activation: str = "relu",
) -> Tensor:
    """conv(act(batch_norm(input)), weight) + bias + residual, as BatchNorm2d and Conv2d compute it.

    The activated input is never a tensor of its own: it is computed while the convolution's input is brought
    into memory, and again in the backward pass. The convolution's padding is zeros behind the activation.

    training=True, or no running statistics: the batch's own mean and variance normalise, and the running
    averages move towards them in place by `momentum` (the running variance towards the unbiased one).
    Otherwise the running averages normalise.

    Args:
        input: (N, Ci, H, W), any strides; CPU: float32 runs the kernels, other floating dtypes ATen.
        weight: (Co, Ci / groups, kh, kw), dtype and device of the input; on the CPU float32 weights and
            biases go with bfloat16 images, too.
        bias: (Co,) or None.
        bn_weight, bn_bias: (Ci,) or None (1 and 0).
        running_mean, running_var: (Ci,), or both None.
        residual: the shape of the result, or None.
        training, momentum: see above.
        stride, padding, dilation: (vertical, horizontal); outside torch.jit.script one int may stand for
            both.
        pre_activation: "none", "relu" (keeps NaN) or "sigmoid".

    Returns:
        (N, Co, Ho, Wo), differentiable once in input, weight, bias, bn_weight, bn_bias and residual.

    Raises:
        RuntimeError: shapes, dtypes, devices or options that do not fit; names operator, argument and shapes.
        ValueError: one value per channel in training; running averages stay.

    Source: He et al. 2016, arXiv:1603.05027; Huang et al. 2017, arXiv:1608.06993; as in the course notes.
    """
    if not torch.jit.is_scripting():
        if _backend.needs_reference(input, weight):
            return reference.bn_act_conv2d(
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
                pre_activation,
            )
    return _bn_act_conv2d(
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
        pre_activation,
    )
