"""GroupNorm, or InstanceNorm2d, of images and activation as one layer."""

from typing import Optional

import torch
from torch import Tensor

from cnnfast import _ext, reference
from cnnfast.ops import _backend
from cnnfast.ops.batch_norm2d import batch_norm2d
from cnnfast.ops.conv2d_bn_act import _update_running


def _fused(
    input: Tensor,
    num_groups: int,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.cnnfast.group_norm2d(input, num_groups, weight, bias, eps=eps, activation=activation)


def _reference(
    input: Tensor,
    num_groups: int,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    values = input.detach().reshape(input.size(0), num_groups, -1)
    var, mean = torch.var_mean(values, 2, unbiased=False)
    return reference.group_norm2d(input, num_groups, weight, bias, eps, activation), mean, var


_group_norm2d = _fused if _ext.AVAILABLE else _reference


def group_norm2d(
    input: Tensor,
    num_groups: int,
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    eps: float = 1e-5,
    activation: str = "none",
) -> Tensor:
    """act(group_norm(input)): every image's own mean and variance over pixels and channels of a group.

    Args:
        input: (N, C, H, W), any strides; CPU: float32 and bfloat16 run the kernels, the others ATen.
        num_groups: divides C.
        weight, bias: (C,) or None (1 and 0).
        eps: added to the biased variance.
        activation: "none", "relu" (keeps NaN) or another name of cnnfast.reference.activation.activate.

    Returns:
        (N, C, H, W), on CPUs in channels_last memory, differentiable once in input, weight and bias. The
        gradient there keeps the input alone: what the activation was given is computed again.

    Raises:
        RuntimeError: shapes, dtypes, devices or options that do not fit; names operator, argument and shapes.
        ValueError: one value per group in a batch of one image, as torch.nn.functional.group_norm has it.

    Source: Wu and He 2018, arXiv:1803.08494; torch.nn.GroupNorm.
    """
    if input.numel() == num_groups and input.numel() > 0:  # what to say of single values is PyTorch's to know
        return reference.group_norm2d(input, num_groups, weight, bias, eps, activation)
    if not torch.jit.is_scripting():
        if input.is_cuda or _backend.needs_reference(input, input):  # on GPUs ATen has kernels for it
            return reference.group_norm2d(input, num_groups, weight, bias, eps, activation)
    return _group_norm2d(input, num_groups, weight, bias, eps, activation)[0]


def instance_norm2d(
    input: Tensor,
    running_mean: Optional[Tensor] = None,
    running_var: Optional[Tensor] = None,
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
) -> Tensor:
    """act(instance_norm(input)): group_norm2d with a group for every channel.

    Args:
        input, weight, bias, eps, activation: as for group_norm2d.
        running_mean, running_var: (C,), or both None.
        use_input_stats: normalise by every image's own statistics; the running averages then move towards the
            means over images of these by `momentum`, in place (the variance towards the unbiased one). Else
            the running averages normalise, as those of batch norm do.

    Returns:
        As group_norm2d.

    Raises:
        RuntimeError: as group_norm2d, and where running averages are to normalise and are missing.
        ValueError: images of one pixel with their own statistics, as torch.nn.functional.instance_norm has.

    Source: Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022; torch.nn.InstanceNorm2d.
    """
    pixels = input.size(2) * input.size(3) if input.dim() == 4 else 0
    averages = running_mean is not None and running_var is not None
    if not use_input_stats and averages:
        return batch_norm2d(
            input, weight, bias, running_mean, running_var, None, False, momentum, eps, activation
        )
    if not use_input_stats or pixels == 1:  # PyTorch's to refuse
        return reference.instance_norm2d(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, activation
        )
    if not torch.jit.is_scripting():
        if input.is_cuda or _backend.needs_reference(input, input):
            return reference.instance_norm2d(
                input, running_mean, running_var, weight, bias, True, momentum, eps, activation
            )
    output, mean, var = _group_norm2d(input, input.size(1), weight, bias, eps, activation)
    if running_mean is not None and running_var is not None and input.size(0) > 0:
        _update_running(running_mean, running_var, mean.mean(0), var.mean(0), pixels, momentum)
    return output
