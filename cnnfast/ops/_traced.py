"""Operators that take lists of optional tensors, for torch.jit.trace: it knows lists of tensors alone.

A scripted function stands in the trace, to which an empty tensor means None.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import List, Optional, Tuple

import torch
from torch import Tensor


def _optional(tensors: List[Tensor]) -> List[Optional[Tensor]]:
    result = torch.jit.annotate(List[Optional[Tensor]], [])
    for tensor in tensors:
        if tensor.numel() == 0:
            result.append(None)
        else:
            result.append(tensor)
    return result


def _inception(input: Tensor, weights: List[Tensor], biases: List[Tensor], branches: List[int]) -> Tensor:
    return torch.ops.cnnfast.inception(input, weights, _optional(biases), branches)[0]


def _dense_block(
    input: Tensor,
    weights: List[Tensor],
    biases: List[Tensor],
    bn_weights: List[Tensor],
    bn_biases: List[Tensor],
    means: List[Tensor],
    vars: List[Tensor],
    eps: float,
    activation: str,
) -> Tuple[Tensor, Tensor, Tensor]:
    return torch.ops.cnnfast.dense_block(
        input,
        weights,
        _optional(biases),
        _optional(bn_weights),
        _optional(bn_biases),
        _optional(means),
        _optional(vars),
        eps=eps,
        activation=activation,
    )


@functools.cache
def _scripted(function: Callable) -> Callable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.script(function)


def _no_none(tensors: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    return [like.new_empty(0) if tensor is None else tensor for tensor in tensors]


def inception(input: Tensor, weights, biases, branches) -> Tensor:
    """The first result of cnnfast::inception."""
    return _scripted(_inception)(input, list(weights), _no_none(biases, input), list(branches))


def dense_block(input: Tensor, weights, *lists, eps: float, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """cnnfast::dense_block."""
    plain = [_no_none(tensors, input) for tensors in lists]
    return _scripted(_dense_block)(input, list(weights), *plain, eps, activation)
