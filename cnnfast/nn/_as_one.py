"""Layers one behind the other as one operator, where that is faster than one after the other."""

from collections.abc import Iterable, Sequence
from typing import List

import torch
from torch import Tensor, fx, nn

from cnnfast import _ext
from cnnfast.nn._holders import is_as_built, must_be_called
from cnnfast.nn.conv import ConvReLU2d
from cnnfast.nn.pool import MaxPool2d
from cnnfast.ops.inception import conv_stage, encode_branches, inception, pool_stage


def runs_as_one(input: Tensor) -> bool:
    """Whether convolutions one behind the other should be one operator, which goes some images at a time.

    So it is while training in bfloat16 on a CPU: what one hands to the next, forward and backward, then stays
    in cache. Elsewhere nothing is gained, and graphs keep the layers apart.
    """
    if not _ext.AVAILABLE or not torch.is_grad_enabled() or isinstance(input, fx.Proxy):
        return False
    if torch.jit.is_tracing() or input.device.type != "cpu" or input.dim() != 4:
        return False
    if input.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return input.dtype == torch.bfloat16


def run_layers(layers: Sequence[nn.Module], input: Tensor) -> Tensor:
    """ConvReLU2d one behind the other, and perhaps a MaxPool2d at the end."""
    if runs_as_one(input) and all(_is_stage(layer) for layer in layers):
        convs = [layer.conv for layer in layers if isinstance(layer, ConvReLU2d)]
        weights, biases = [conv.weight for conv in convs], [conv.bias for conv in convs]
        return inception(input, weights, biases, encode_branches([[_stage(layer) for layer in layers]]))
    for layer in layers:
        input = layer(input)
    return input


def run_blocks(blocks: Iterable[nn.Module], kind: type, input: Tensor) -> Tensor:
    """Modules one behind the other; those of `kind`, chains of ConvReLU2d, with the pool behind them."""
    blocks = list(blocks)
    while blocks:
        block = blocks.pop(0)
        if blocks and isinstance(blocks[0], MaxPool2d) and not must_be_called(block, kind):
            input = run_layers([*block, blocks.pop(0)], input)
        else:
            input = block(input)
    return input


def _is_stage(layer: nn.Module) -> bool:
    """Whether a stage of the operator says all that a layer does."""
    if not must_be_called(layer, MaxPool2d):
        return layer.dilation == (1, 1) and not layer.ceil_mode and not layer.return_indices
    if must_be_called(layer, ConvReLU2d) or not is_as_built(layer.conv, layer._built):
        return False
    return not layer.pad_first and layer.conv.dilation == (1, 1) and layer.activation == "relu"


def _stage(layer: nn.Module) -> List[int]:
    if isinstance(layer, MaxPool2d):
        return pool_stage("max", layer.kernel_size, layer.stride, layer.padding)
    conv = layer.conv
    return conv_stage(conv.kernel_size, conv.stride, layer.padding, conv.groups, layer.activation)
