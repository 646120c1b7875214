"""What generated forwards call for whole blocks; see runtime.py."""

import torch
from torch import Tensor

from cnnfast.fuse.runtime import avg_pool, conv, max_pool
from cnnfast.fuse.runtime_norm import bn_conv
from cnnfast.nn._as_one import runs_as_one
from cnnfast.nn.dense import dense_layers
from cnnfast.nn.inception import inception as inception_operator


def conv_stage(
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: int,
) -> list[int]:
    """A convolution of a branch; activation: its number."""
    stage = [0, activation, kernel_size[0], kernel_size[1], stride[0], stride[1], padding[0], padding[1]]
    return stage + [groups, dilation[0], dilation[1], 0, 0]


def max_pool_stage(
    kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> list[int]:
    """A max pool of a branch."""
    stage = [1, 0, kernel_size[0], kernel_size[1], stride[0], stride[1], padding[0], padding[1]]
    return stage + [0, dilation[0], dilation[1], int(ceil_mode), 0]


def avg_pool_stage(
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> list[int]:
    """An average pool of a branch."""
    divisor = 0 if divisor_override is None else divisor_override
    stage = [2, 0, kernel_size[0], kernel_size[1], stride[0], stride[1], padding[0], padding[1]]
    return stage + [int(count_include_pad), 1, 1, int(ceil_mode), divisor]


def inception(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    lengths: list[int],
    stages: list[list[int]],
) -> Tensor:
    """Branches of lengths[i] stages each, their outputs concatenated on dimension 1."""
    if x.dim() == 4 and _has_words(stages):
        return inception_operator(x, weights, biases, _branches(lengths, stages))
    outputs: list[Tensor] = []
    at = 0
    convs = 0
    for length in lengths:
        outputs.append(_run(x, weights, biases, stages, at, at + length, convs))
        for stage in stages[at : at + length]:
            if stage[0] == 0:
                convs += 1
        at += length
    return torch.cat(outputs, dim=1)


def chain(x: Tensor, weights: list[Tensor], biases: list[Tensor | None], stages: list[list[int]]) -> Tensor:
    """Stages one behind the other."""
    if not torch.jit.is_scripting():
        if runs_as_one(x) and _has_words(stages):
            return inception_operator(x, weights, biases, _branches([len(stages)], stages))
    return _run(x, weights, biases, stages, 0, len(stages), 0)


def _branches(lengths: list[int], stages: list[list[int]]) -> list[int]:
    """As the operator takes them."""
    branches = [len(lengths)]
    at = 0
    for length in lengths:
        branches.append(length)
        for i in range(at, at + length):
            branches.extend(stages[i][:9])  # behind them stands what the operator has no word for
        at += length
    return branches


def _has_words(stages: list[list[int]]) -> bool:
    """Whether the operator knows all settings; they may have changed since the network was fused."""
    for stage in stages:
        if stage[9] != 1 or stage[10] != 1 or stage[11] != 0 or stage[12] != 0:
            return False
    return True


def _run(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    stages: list[list[int]],
    begin: int,
    end: int,
    convs: int,
) -> Tensor:
    """Stages [begin, end), in front of which there are so many convolutions."""
    for i in range(begin, end):
        if stages[i][0] == 0:
            x = _conv(x, weights[convs], biases[convs], stages[i])
            convs += 1
        else:
            x = _pool(x, stages[i])
    return x


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, stage: list[int]) -> Tensor:
    activation = "none" if stage[1] == 0 else "relu" if stage[1] == 1 else "sigmoid"
    return conv(
        x, None, weight, bias, [], "constant", stage[4:6], stage[6:8], stage[9:11], stage[8], activation
    )


def _pool(x: Tensor, stage: list[int]) -> Tensor:
    if stage[0] == 1:
        return max_pool(x, stage[2:4], stage[4:6], stage[6:8], stage[9:11], stage[11] == 1)
    divisor: int | None = None
    if stage[12] != 0:
        divisor = stage[12]
    return avg_pool(x, stage[2:4], stage[4:6], stage[6:8], stage[11] == 1, stage[8] == 1, divisor)


def dense_layer(
    kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> list[int]:
    """The convolution of a dense block's layer: its settings, and 1 where the operator has them so."""
    same = kernel_size[0] == 2 * padding[0] + 1 and kernel_size[1] == 2 * padding[1] + 1
    ones = stride[0] * stride[1] * dilation[0] * dilation[1] * groups == 1
    plain = 1 if same and ones else 0
    return [stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1], groups, plain]


def dense_block(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    bn_weights: list[Tensor | None],
    bn_biases: list[Tensor | None],
    running_means: list[Tensor | None],
    running_vars: list[Tensor | None],
    batches_tracked: list[Tensor | None],
    training: list[bool],
    track_running_stats: list[bool],
    momentum: list[float | None],
    eps: list[float],
    settings: list[list[int]],
    activation: str,
) -> Tensor:
    """Layer by layer: x = cat((x, conv(act(batch_norm(x)))), dim=1)."""
    plain = True
    for numbers in settings:
        plain = plain and numbers[7] == 1
    if plain:
        return dense_layers(
            x,
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
    for i in range(len(weights)):
        new = bn_conv(
            x,
            None,
            weights[i],
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
            settings[i][0:2],
            settings[i][2:4],
            settings[i][4:6],
            settings[i][6],
            activation,
        )
        x = torch.cat([x, new], dim=1)
    return x
