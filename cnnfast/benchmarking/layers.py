"""Single layers as networks, so that operators are measured by the same harness as whole networks."""

from torch import nn


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    batch_norm: bool = False,
    relu: bool = False,
) -> nn.Sequential:
    """Convolution, then batch norm and ReLU as asked for."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups)
    ]
    if batch_norm:
        layers.append(nn.BatchNorm2d(out_channels))
    if relu:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def max_pool(kernel_size: int, stride: int, padding: int = 0) -> nn.Sequential:
    return nn.Sequential(nn.MaxPool2d(kernel_size, stride, padding))


def avg_pool(kernel_size: int, stride: int, padding: int = 0) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(kernel_size, stride, padding))


def linear(in_features: int, out_features: int) -> nn.Sequential:
    """Flatten, linear, ReLU."""
    return nn.Sequential(nn.Flatten(), nn.Linear(in_features, out_features), nn.ReLU())
