"""The basic operations of the course notes, one by one, under the notes' names.

Layers to build networks from are in `cnnfast.nn`; these are for reading, teaching and trying out.
"""

import torch
from torch import Tensor, nn

from cnnfast import ops

__all__ = ["Corr2d", "batch_norm", "corr2d", "corr2d_multi_in", "corr2d_multi_in_out", "pool2d"]


def corr2d(X: Tensor, K: Tensor) -> Tensor:
    """Two-dimensional cross-correlation without padding: Y[i, j] = sum of X[i:i+h, j:j+w] * K.

    Args:
        X: (H, W), of any number type.
        K: (h, w), dtype and device of X.

    Returns:
        (H - h + 1, W - w + 1), differentiable in both.

    Raises:
        ValueError: other numbers of dimensions.
        RuntimeError: dtypes that differ, a kernel larger than X.

    Source: course notes, convolutional layers.
    """
    _check("corr2d", X=(X, "HW"), K=(K, "hw"))
    return corr2d_multi_in(X[None], K[None])


def corr2d_multi_in(X: Tensor, K: Tensor) -> Tensor:
    """The sum over channels of each channel's cross-correlation with a kernel of its own.

    Args:
        X: (C, H, W); K: (C, h, w).

    Returns:
        (H - h + 1, W - w + 1), as `corr2d`, which also says what is raised.
    """
    _check("corr2d_multi_in", X=(X, "CHW"), K=(K, "Chw"))
    return corr2d_multi_in_out(X, K[None])[0]


def corr2d_multi_in_out(X: Tensor, K: Tensor) -> Tensor:
    """`corr2d_multi_in` once per output channel: what a convolutional layer computes for one image.

    Args:
        X: (C, H, W); K: (D, C, h, w).

    Returns:
        (D, H - h + 1, W - w + 1), as `corr2d`, which also says what is raised.
    """
    _check("corr2d_multi_in_out", X=(X, "CHW"), K=(K, "DChw"))
    return ops.conv2d(X[None], K)[0]


class Corr2d(nn.Module):
    """The smallest convolutional layer: corr2d(X, weight) + bias, one kernel and one number.

    Args:
        kernel_size: (height, width) of the kernel, which starts as normal random numbers; the bias as 0.

    Source: course notes, convolutional layers.
    """

    def __init__(self, kernel_size: tuple[int, int]):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(kernel_size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, X: Tensor) -> Tensor:
        return corr2d(X, self.weight) + self.bias


def pool2d(X: Tensor, size: tuple[int, int], mode: str = "max") -> Tensor:
    """The largest value ("max") or the mean ("avg") of every window, a window at every place.

    Args:
        X: (H, W). The mean needs floating-point numbers.
        size: (h, w) of the window.

    Returns:
        (H - h + 1, W - w + 1), differentiable.

    Raises:
        ValueError: another number of dimensions, another mode.
        RuntimeError: a window larger than X.

    Source: course notes, pooling.
    """
    _check("pool2d", X=(X, "HW"))
    if mode not in ("max", "avg"):
        raise ValueError(f'pool2d: mode is {mode!r}, it must be "max" or "avg"')
    pool = ops.max_pool2d if mode == "max" else ops.avg_pool2d
    return pool(X[None, None], size, (1, 1))[0, 0]


def batch_norm(
    X: Tensor,
    gamma: Tensor,
    beta: Tensor,
    moving_mean: Tensor,
    moving_var: Tensor,
    training: bool = True,
    eps: float = 1e-5,
    momentum: float = 0.9,
) -> tuple[Tensor, Tensor, Tensor]:
    """gamma * (X - mean) / sqrt(var + eps) + beta, step by step, with mean and variance per channel.

    Args:
        X: vectors (N, F), normalised per feature, or images (N, C, H, W), normalised per channel.
        gamma, beta, moving_mean, moving_var: one number per feature or channel; none of them is changed.
        training: mean and variance are those of X, else the moving ones.
        momentum: the share of the old in a new moving average. (torch.nn.BatchNorm2d's is that of the new.)

    Returns:
        (result, new moving_mean, new moving_var); the moving averages unchanged outside training. As in the
        notes, moving_var averages var itself; torch.nn.BatchNorm2d averages n / (n - 1) times that.

    Raises:
        ValueError: another number of dimensions.

    Source: course notes, batch normalisation; Ioffe and Szegedy 2015, arXiv:1502.03167.
    """
    if X.dim() not in (2, 4):
        raise ValueError(f"batch_norm: X must be (N, F) or (N, C, H, W), not {tuple(X.shape)}")
    over = (0,) if X.dim() == 2 else (0, 2, 3)
    mean, var = moving_mean, moving_var
    if training:
        mean = X.mean(over)
        var = ((X - _per_channel(mean, X)) ** 2).mean(over)
        moving_mean = momentum * moving_mean + (1 - momentum) * mean.detach()
        moving_var = momentum * moving_var + (1 - momentum) * var.detach()
    normalised = (X - _per_channel(mean, X)) / torch.sqrt(_per_channel(var, X) + eps)
    return _per_channel(gamma, X) * normalised + _per_channel(beta, X), moving_mean, moving_var


def _per_channel(values: Tensor, X: Tensor) -> Tensor:
    """One number per channel in a shape that meets X's channels."""
    return values.reshape(1, -1, *[1] * (X.dim() - 2))


def _check(name: str, **arguments: tuple[Tensor, str]) -> None:
    for argument, (tensor, dimensions) in arguments.items():
        if tensor.dim() != len(dimensions):
            expected = ", ".join(dimensions)
            raise ValueError(f"{name}: {argument} must be ({expected}), not {tuple(tensor.shape)}")
