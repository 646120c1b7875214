"""The blocks of DenseNet."""

from typing import List, Optional

import torch
from torch import Tensor, nn

from cnnfast.nn._checks import check_counts
from cnnfast.nn._holders import check_scriptable, is_as_built, must_be_called, settings_of
from cnnfast.nn._statistics import averages, settle, step_of
from cnnfast.nn.bn_conv import BNActConv2d, bn_act_conv
from cnnfast.nn.pool import AvgPool2d
from cnnfast.ops.dense_block import dense_block


@torch.fx.wrap
def dense_layers(
    input: Tensor,
    weights: List[Tensor],
    biases: List[Optional[Tensor]],
    bn_weights: List[Optional[Tensor]],
    bn_biases: List[Optional[Tensor]],
    running_means: List[Optional[Tensor]],
    running_vars: List[Optional[Tensor]],
    batches_tracked: List[Optional[Tensor]],
    training: List[bool],
    track_running_stats: List[bool],
    momentum: List[Optional[float]],
    eps: List[float],
    activation: str,
) -> Tensor:
    """What DenseBlock computes, bookkeeping of torch.nn.BatchNorm2d included; one call in an FX graph.

    Every list has one entry per layer.
    """
    if not _normalise_alike(training, track_running_stats, momentum, eps):
        return _layer_by_layer(
            input,
            weights,
            biases,
            bn_weights,
            bn_biases,
            running_means,
            running_vars,
            batches_tracked,
            training,
            track_running_stats,
            momentum,
            eps,
            activation,
        )
    means: List[Optional[Tensor]] = []
    variances: List[Optional[Tensor]] = []
    for i in range(len(weights)):
        means.append(averages(running_means[i], training[i], track_running_stats[i], momentum[i]))
        variances.append(averages(running_vars[i], training[i], track_running_stats[i], momentum[i]))
    output = dense_block(
        input,
        weights,
        biases,
        bn_weights,
        bn_biases,
        means,
        variances,
        training[0],
        step_of(momentum[0]),
        eps[0],
        activation,
    )
    for i in range(len(weights)):
        settle(
            running_means[i],
            running_vars[i],
            means[i],
            variances[i],
            batches_tracked[i],
            training[i],
            track_running_stats[i],
            momentum[i],
        )
    return output


def _normalise_alike(
    training: List[bool], track_running_stats: List[bool], momentum: List[Optional[float]], eps: List[float]
) -> bool:
    """Whether one operator can serve all layers."""
    for i in range(1, len(training)):
        if training[i] != training[0] or track_running_stats[i] != track_running_stats[0]:
            return False
        if eps[i] != eps[0] or step_of(momentum[i]) != step_of(momentum[0]):
            return False
    return True


def _layer_by_layer(
    input: Tensor,
    weights: List[Tensor],
    biases: List[Optional[Tensor]],
    bn_weights: List[Optional[Tensor]],
    bn_biases: List[Optional[Tensor]],
    running_means: List[Optional[Tensor]],
    running_vars: List[Optional[Tensor]],
    batches_tracked: List[Optional[Tensor]],
    training: List[bool],
    track_running_stats: List[bool],
    momentum: List[Optional[float]],
    eps: List[float],
    activation: str,
) -> Tensor:
    """The same where batch norms differ, as after freezing the statistics of some; copies to concatenate."""
    output = input
    for i in range(len(weights)):
        weight = weights[i]
        new = bn_act_conv(
            output,
            None,
            weight,
            biases[i],
            bn_weights[i],
            bn_biases[i],
            running_means[i],
            running_vars[i],
            batches_tracked[i],
            training[i],
            track_running_stats[i],
            momentum[i],
            eps[i],
            [],
            "constant",
            [1, 1],
            [weight.size(2) // 2, weight.size(3) // 2],
            [1, 1],
            1,
            activation,
        )
        output = torch.cat([output, new], dim=1)
    return output


class DenseBlock(nn.Module):
    """num_layers × (BN, ReLU, 3×3 convolution → growth channels), each behind the channels that it reads.

    (N, in_channels, H, W) to (N, in_channels + num_layers · growth, H, W). Every layer writes into the
    block's output: nothing is copied, and a channel's statistics are computed once for all layers.

    The parameters are those of the children `layers`, each a BNActConv2d with `bn` and `conv`. Layers with
    hooks or replaced children are called one by one.

    Raises ValueError for numbers below 1.

    Source: Huang et al. 2017, "Densely connected convolutional networks", arXiv:1608.06993, as in the course
    notes.
    """

    def __init__(self, num_layers, in_channels, growth):
        super().__init__()
        check_counts("DenseBlock", num_layers=num_layers, in_channels=in_channels, growth=growth)
        self.layers = nn.ModuleList(
            BNActConv2d(in_channels + i * growth, growth, 3, padding=1) for i in range(num_layers)
        )
        self._conv = settings_of(self.layers[0].conv)

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if not self._is_as_built():
                return self._call_children(input)
        weights: List[Tensor] = []
        biases: List[Optional[Tensor]] = []
        bn_weights: List[Optional[Tensor]] = []
        bn_biases: List[Optional[Tensor]] = []
        running_means: List[Optional[Tensor]] = []
        running_vars: List[Optional[Tensor]] = []
        batches_tracked: List[Optional[Tensor]] = []
        training: List[bool] = []
        track_running_stats: List[bool] = []
        momentum: List[Optional[float]] = []
        eps: List[float] = []
        for layer in self.layers:
            weights.append(layer.conv.weight)
            biases.append(layer.conv.bias)
            bn_weights.append(layer.bn.weight)
            bn_biases.append(layer.bn.bias)
            running_means.append(layer.bn.running_mean)
            running_vars.append(layer.bn.running_var)
            batches_tracked.append(layer.bn.num_batches_tracked)
            training.append(layer.bn.training)
            track_running_stats.append(layer.bn.track_running_stats)
            momentum.append(layer.bn.momentum)
            eps.append(layer.bn.eps)
        return dense_layers(
            input,
            weights,
            biases,
            bn_weights,
            bn_biases,
            running_means,
            running_vars,
            batches_tracked,
            training,
            track_running_stats,
            momentum,
            eps,
            "relu",
        )

    def _is_as_built(self) -> bool:
        return all(
            [
                not must_be_called(layer, BNActConv2d)
                and is_as_built(layer.conv, self._conv)
                and not must_be_called(layer.bn, nn.BatchNorm2d)
                and layer.activation == "relu"
                for layer in self.layers
            ]
        )

    def _call_children(self, input: Tensor) -> Tensor:
        output = input
        for layer in self.layers:
            output = torch.cat([output, layer(output)], dim=1)
        return output

    def __prepare_scriptable__(self) -> nn.Module:
        for i, layer in enumerate(self.layers):
            path = f"layers.{i}"
            kinds = {path: BNActConv2d, f"{path}.conv": self._conv, f"{path}.bn": nn.BatchNorm2d}
            check_scriptable(self, **kinds)
            if layer.activation != "relu":
                raise RuntimeError(f"DenseBlock cannot be scripted: {path} activates with {layer.activation}")
        return self


class Transition(nn.Module):
    """BN, ReLU, 1×1 convolution, average pool 2/2: (N, in_channels, H, W) to (N, out_channels, H/2, W/2).

    Source: Huang et al. 2017, arXiv:1608.06993, as in the course notes.
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = BNActConv2d(in_channels, out_channels, 1)
        self.pool = AvgPool2d(2, 2)

    def forward(self, input: Tensor) -> Tensor:
        return self.pool(self.conv(input))
