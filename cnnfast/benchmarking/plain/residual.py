"""Residual networks: the notes' small one, ResNet-18 and its pre-activation version."""

from collections import OrderedDict

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """conv3, ReLU, conv3, + x, ReLU; no batch norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(x + self.conv2(self.relu1(self.conv1(x))))


class ResidualNet(nn.Module):
    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 5)
        self.conv2 = nn.Conv2d(16, 32, 5)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.mp1 = nn.MaxPool2d(2)
        self.mp2 = nn.MaxPool2d(2)
        self.rblock1 = ResidualBlock(16)
        self.rblock2 = ResidualBlock(32)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rblock1(self.mp1(self.relu1(self.conv1(x))))
        x = self.rblock2(self.mp2(self.relu2(self.conv2(x))))
        return self.fc(self.flatten(x))


def residual_net(in_channels: int = 1, num_classes: int = 10) -> ResidualNet:
    return ResidualNet(in_channels, num_classes)


class Residual(nn.Module):
    """conv3, BN, ReLU, conv3, BN, + shortcut, ReLU (He et al. 2015)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        changes = stride != 1 or in_channels != out_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv3 = nn.Conv2d(in_channels, out_channels, 1, stride) if changes else nn.Identity()
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.conv3(x))


class PreActResidual(nn.Module):
    """BN, ReLU, conv3, BN, ReLU, conv3, + shortcut (He et al. 2016); the 1x1 reads the first activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.use_1x1conv = stride != 1 or in_channels != out_channels
        if self.use_1x1conv:
            self.conv3 = nn.Conv2d(in_channels, out_channels, 1, stride)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        y = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return y + (self.conv3(activated) if self.use_1x1conv else x)


def _stage(block, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(block(in_channels, channels, stride), block(channels, channels))


def _resnet(stem: nn.Sequential, block, tail: list, num_classes: int) -> nn.Sequential:
    stages = [
        ("resnet_block1", _stage(block, 64, 64, 1)),
        ("resnet_block2", _stage(block, 64, 128, 2)),
        ("resnet_block3", _stage(block, 128, 256, 2)),
        ("resnet_block4", _stage(block, 256, 512, 2)),
    ]
    head = [
        ("global_avg_pool", nn.AdaptiveAvgPool2d(1)),
        ("fc", nn.Sequential(nn.Flatten(), nn.Linear(512, num_classes))),
    ]
    return nn.Sequential(OrderedDict([("stem", stem), *stages, *tail, *head]))


def resnet18(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    stem = nn.Sequential(
        nn.Conv2d(in_channels, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    )
    return _resnet(stem, Residual, [], num_classes)


def resnet18_preact(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    stem = nn.Sequential(nn.Conv2d(in_channels, 64, 7, 2, 3), nn.MaxPool2d(3, 2, 1))
    tail = [("norm", nn.Sequential(nn.BatchNorm2d(512), nn.ReLU()))]
    return _resnet(stem, PreActResidual, tail, num_classes)
