"""Parallel branches of convolutions and poolings over one input, concatenated on channels."""

from collections.abc import Sequence
from typing import List, Optional, Tuple

import torch
from torch import Tensor

from cnnfast import _ext, reference
from cnnfast.ops import _backend, _traced

_ACTIVATIONS = ("none", "relu", "sigmoid")


def _pair(value: int | Sequence[int]) -> Tuple[int, int]:
    if isinstance(value, int):
        return value, value
    vertical, horizontal = value
    return int(vertical), int(horizontal)


def _stage(kind, activation, kernel_size, stride, padding, option) -> List[int]:
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, not {activation!r}")
    geometry = [*_pair(kernel_size), *_pair(stride), *_pair(padding)]
    return [kind, _ACTIVATIONS.index(activation), *geometry, option]


def conv_stage(
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    activation: str = "none",
) -> List[int]:
    """A convolution with its activation, as a stage of a branch; ints or (vertical, horizontal)."""
    return _stage(0, activation, kernel_size, stride, padding, groups)


def pool_stage(
    mode: str,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    count_include_pad: bool = True,
    activation: str = "none",
) -> List[int]:
    """A "max" or "avg" pooling as a stage of a branch; stride None means kernel_size."""
    if mode not in ("max", "avg"):
        raise ValueError(f"mode must be 'max' or 'avg', not {mode!r}")
    option = int(count_include_pad) if mode == "avg" else 0
    stride = kernel_size if stride is None else stride
    return _stage(1 if mode == "max" else 2, activation, kernel_size, stride, padding, option)


def encode_branches(branches: Sequence[Sequence[Sequence[int]]]) -> List[int]:
    """The `branches` of `inception` for lists of stages, one list per branch; an empty one passes through."""
    words = [len(branches)]
    for branch in branches:
        words.append(len(branch))
        for stage in branch:
            words.extend(stage)
    return words


def _first(
    input: Tensor, weights: List[Tensor], biases: List[Optional[Tensor]], branches: List[int]
) -> Tensor:
    if not torch.jit.is_scripting():
        if torch.jit.is_tracing():
            return _traced.inception(input, weights, biases, branches)
    return torch.ops.cnnfast.inception(input, weights, biases, branches)[0]


_inception = _first if _ext.AVAILABLE else reference.inception


def inception(
    input: Tensor, weights: List[Tensor], biases: List[Optional[Tensor]], branches: List[int]
) -> Tensor:
    """Every branch runs its stages one after another on the input; the outputs are concatenated on channels.

    Each branch's last stage writes straight into its channels of the result: nothing is copied for the
    concatenation, neither forward nor backward.

    Args:
        input: (N, C, H, W), any strides; CPU: float32 runs the kernels, other floating dtypes ATen.
        weights: (Co, Ci / groups, kh, kw) of every convolution, in the order of the branches and of their
            stages; dtype and device of the input; on the CPU float32 ones go with bfloat16 images, too.
        biases: (Co,) or None, one entry per weight.
        branches: the stages as `encode_branches` gives them from `conv_stage` and `pool_stage`: the number of
            branches, then per branch the number of stages and nine numbers for each (0 convolution, 1 max
            pooling, 2 average pooling; 0 no activation, 1 ReLU, 2 sigmoid; kernel, stride and padding,
            vertical and horizontal; groups, or whether average pooling counts padding). A branch without
            stages passes the input through. All branches must give images of one size.

    Returns:
        (N, sum of the branches' channels, Ho, Wo), differentiable once in input, weights and biases.

    Raises:
        RuntimeError: shapes, dtypes, devices or numbers that do not fit; names operator, branch, stage,
            argument and shapes.

    Source: Szegedy et al. 2015, arXiv:1409.4842, as in the course notes (Inception, InceptionA).
    """
    if not torch.jit.is_scripting():
        if _backend.needs_reference(input, weights[0] if weights else input):
            return reference.inception(input, weights, biases, branches)
    return _inception(input, weights, biases, branches)
