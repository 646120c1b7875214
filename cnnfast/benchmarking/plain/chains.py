"""Networks that are one chain of layers: LeNet, AlexNet, VGG, NiN."""

from collections import OrderedDict

from torch import Tensor, nn


class Reshape(nn.Module):
    """Turns flat 784 vectors or bare 28x28 images into Nx1x28x28, as the notes' LeNet does first."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 1, 28, 28)


def lenet(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    first = Reshape() if in_channels == 1 else nn.Identity()
    return nn.Sequential(
        first,
        nn.Conv2d(in_channels, 6, 5, padding=2),
        nn.Sigmoid(),
        nn.AvgPool2d(2, 2),
        nn.Conv2d(6, 16, 5),
        nn.Sigmoid(),
        nn.AvgPool2d(2, 2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Sigmoid(),
        nn.Linear(120, 84),
        nn.Sigmoid(),
        nn.Linear(84, num_classes),
    )


class ConvThenFc(nn.Module):
    """Convolutions, flatten, fully connected layers."""

    def __init__(self, conv: nn.Sequential, fc: nn.Sequential):
        super().__init__()
        self.conv = conv
        self.flatten = nn.Flatten()
        self.fc = fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(self.conv(x)))


def _hidden(in_features: int, width: int, layers: int) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for layer in range(layers):
        modules += [nn.Linear(in_features if layer == 0 else width, width), nn.ReLU(), nn.Dropout(0.5)]
    return modules


def alexnet(in_channels: int = 1, num_classes: int = 10, hidden_layers: int = 1) -> ConvThenFc:
    conv = nn.Sequential(
        nn.Conv2d(in_channels, 96, 11, 4),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    )
    return ConvThenFc(conv, nn.Sequential(*_hidden(6400, 4096, hidden_layers), nn.Linear(4096, num_classes)))


def alexnet_paper(in_channels: int = 3, num_classes: int = 1000) -> ConvThenFc:
    def lrn() -> nn.Module:
        return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)

    conv = nn.Sequential(
        nn.Conv2d(in_channels, 96, 11, 4, padding=2),
        nn.ReLU(),
        lrn(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2),
        nn.ReLU(),
        lrn(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    )
    return ConvThenFc(conv, nn.Sequential(*_hidden(9216, 4096, 2), nn.Linear(4096, num_classes)))


def vgg(
    conv_arch: tuple, fc_features: int, fc_hidden_units: int = 4096, num_classes: int = 10
) -> nn.Sequential:
    """conv_arch: per block (number of convolutions, in channels, out channels)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (convs, channels, out_channels) in enumerate(conv_arch, start=1):
        block: list[nn.Module] = []
        for _ in range(convs):
            block += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU()]
            channels = out_channels
        layers[f"vgg_block_{index}"] = nn.Sequential(*block, nn.MaxPool2d(2, 2))
    layers["fc"] = nn.Sequential(
        nn.Flatten(),
        *_hidden(fc_features, fc_hidden_units, 2),
        nn.Linear(fc_hidden_units, num_classes),
    )
    return nn.Sequential(layers)


def _vgg11_arch(in_channels: int, ratio: int) -> tuple:
    widths = [(1, 64), (1, 128), (2, 256), (2, 512), (2, 512)]
    arch, channels = [], in_channels
    for convs, width in widths:
        arch.append((convs, channels, width // ratio))
        channels = width // ratio
    return tuple(arch)


def vgg11(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    return vgg(_vgg11_arch(in_channels, 1), 512 * 7 * 7, 4096, num_classes)


def vgg11_small(in_channels: int = 1, num_classes: int = 10, ratio: int = 8) -> nn.Sequential:
    return vgg(_vgg11_arch(in_channels, ratio), 512 // ratio * 7 * 7, 4096 // ratio, num_classes)


def _nin_block(in_channels: int, out_channels: int, kernel: int, stride: int, padding: int, ones: int):
    layers: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, kernel, stride, padding), nn.ReLU()]
    for _ in range(ones):
        layers += [nn.Conv2d(out_channels, out_channels, 1), nn.ReLU()]
    return nn.Sequential(*layers)


def nin(in_channels: int = 1, num_classes: int = 10, convs_1x1: int = 2) -> nn.Sequential:
    return nn.Sequential(
        _nin_block(in_channels, 96, 11, 4, 0, convs_1x1),
        nn.MaxPool2d(3, 2),
        _nin_block(96, 256, 5, 1, 2, convs_1x1),
        nn.MaxPool2d(3, 2),
        _nin_block(256, 384, 3, 1, 1, convs_1x1),
        nn.MaxPool2d(3, 2),
        nn.Dropout(0.5),
        _nin_block(384, num_classes, 3, 1, 1, convs_1x1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def nin_single_1x1(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    return nin(in_channels, num_classes, convs_1x1=1)
