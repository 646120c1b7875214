"""Layers one behind the other as one operator, where that is faster than one after the other."""

from collections.abc import Iterable, Sequence
from typing import List

import torch
from torch import Tensor, fx, nn

from cnnfast import _ext
from cnnfast.nn._holders import is_as_built, must_be_called
from cnnfast.nn.conv import ConvAct2d, ConvReLU2d
from cnnfast.nn.pool import AvgPool2d, MaxPool2d
from cnnfast.ops.inception import conv_stage, encode_branches, inception, pool_stage

# Images of so few channels are those of first layers: as a rule nobody wants the gradient of their input.
FIRST_CHANNELS = 4


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
    """ConvAct2d and ConvReLU2d one behind the other, and perhaps a pool at the end."""
    if runs_as_one(input) and all(_is_stage(layer) for layer in layers):
        convs = [layer.conv for layer in layers if isinstance(layer, ConvAct2d)]
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


def run_in_order(layers: Iterable[nn.Module], input: Tensor) -> Tensor:
    """Modules one behind the other; a first convolution with the pool behind it."""
    layers = list(layers)
    while layers:
        layer = layers.pop(0)
        if layers and _is_first(layer) and isinstance(layers[0], MaxPool2d | AvgPool2d):
            input = run_layers([layer, layers.pop(0)], input)
        else:
            input = layer(input)
    return input


class InOrder(nn.Sequential):
    """torch.nn.Sequential; a first convolution and the pool behind it are one operator where runs_as_one."""

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return run_in_order(self, input)
        for layer in self:
            input = layer(input)
        return input


def _is_first(layer: nn.Module) -> bool:
    return isinstance(layer, ConvAct2d) and layer.conv.in_channels <= FIRST_CHANNELS


def _is_stage(layer: nn.Module) -> bool:
    """Whether a stage of the operator says all that a layer does."""
    if not must_be_called(layer, MaxPool2d):
        return layer.dilation == (1, 1) and not layer.ceil_mode and not layer.return_indices
    if not must_be_called(layer, AvgPool2d):
        return not layer.ceil_mode and layer.divisor_override is None
    if must_be_called(layer, ConvReLU2d) and must_be_called(layer, ConvAct2d):
        return False
    plain = layer.activation in ("none", "relu", "sigmoid") and layer.conv.dilation == (1, 1)
    return plain and not layer.pad_first and is_as_built(layer.conv, layer._built)


def _stage(layer: nn.Module) -> List[int]:
    if isinstance(layer, MaxPool2d):
        return pool_stage("max", layer.kernel_size, layer.stride, layer.padding)
    if isinstance(layer, AvgPool2d):
        return pool_stage("avg", layer.kernel_size, layer.stride, layer.padding, layer.count_include_pad)
    conv = layer.conv
    return conv_stage(conv.kernel_size, conv.stride, layer.padding, conv.groups, layer.activation)
