"""The notes' DenseNet: four dense blocks of four layers, growth 32."""

from collections import OrderedDict

import torch
from torch import Tensor, nn


def _dense_layer(in_channels: int, growth: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(), nn.Conv2d(in_channels, growth, 3, padding=1))


class DenseBlock(nn.Module):
    """Each layer reads all channels so far; its output is concatenated behind them."""

    def __init__(self, layers: int, in_channels: int, growth: int):
        super().__init__()
        self.net = nn.ModuleList(_dense_layer(in_channels + i * growth, growth) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = torch.cat((x, layer(x)), dim=1)
        return x


def transition(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(in_channels), nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1), nn.AvgPool2d(2, 2)
    )


def densenet(in_channels: int = 1, num_classes: int = 10, growth: int = 32, layers: int = 4) -> nn.Sequential:
    stem = nn.Sequential(
        nn.Conv2d(in_channels, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    )
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    channels = 64
    for index in range(1, 5):
        parts[f"dense_block{index}"] = DenseBlock(layers, channels, growth)
        channels += layers * growth
        if index < 4:
            parts[f"transition{index}"] = transition(channels, channels // 2)
            channels //= 2
    parts["norm"] = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
    parts["global_avg_pool"] = nn.AdaptiveAvgPool2d(1)
    parts["fc"] = nn.Sequential(nn.Flatten(), nn.Linear(channels, num_classes))
    return nn.Sequential(parts)
