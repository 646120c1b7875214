"""GoogLeNet and the notes' small Inception network."""

import torch
from torch import Tensor, nn


class Inception(nn.Module):
    """1x1 | 1x1, 3x3 | 1x1, 5x5 | max pool, 1x1, ReLU after each, concatenated on channels."""

    def __init__(self, in_channels: int, c1: int, c2: tuple[int, int], c3: tuple[int, int], c4: int):
        super().__init__()
        self.p1_1 = nn.Conv2d(in_channels, c1, 1)
        self.p2_1 = nn.Conv2d(in_channels, c2[0], 1)
        self.p2_2 = nn.Conv2d(c2[0], c2[1], 3, padding=1)
        self.p3_1 = nn.Conv2d(in_channels, c3[0], 1)
        self.p3_2 = nn.Conv2d(c3[0], c3[1], 5, padding=2)
        self.p4_1 = nn.MaxPool2d(3, 1, 1)
        self.p4_2 = nn.Conv2d(in_channels, c4, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch1 = torch.relu(self.p1_1(x))
        branch2 = torch.relu(self.p2_2(torch.relu(self.p2_1(x))))
        branch3 = torch.relu(self.p3_2(torch.relu(self.p3_1(x))))
        branch4 = torch.relu(self.p4_2(self.p4_1(x)))
        return torch.cat((branch1, branch2, branch3, branch4), dim=1)


def googlenet(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(in_channels, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        # No ReLU after either convolution: so it stands in the notes.
        nn.Sequential(nn.Conv2d(64, 64, 1), nn.Conv2d(64, 192, 3, padding=1), nn.MaxPool2d(3, 2, 1)),
        nn.Sequential(
            Inception(192, 64, (96, 128), (16, 32), 32),
            Inception(256, 128, (128, 192), (32, 96), 64),
            nn.MaxPool2d(3, 2, 1),
        ),
        nn.Sequential(
            Inception(480, 192, (96, 208), (16, 48), 64),
            Inception(512, 160, (112, 224), (24, 64), 64),
            Inception(512, 128, (128, 256), (24, 64), 64),
            Inception(512, 112, (144, 288), (32, 64), 64),
            Inception(528, 256, (160, 320), (32, 128), 128),
            nn.MaxPool2d(3, 2, 1),
        ),
        nn.Sequential(
            Inception(832, 256, (160, 320), (32, 128), 128),
            Inception(832, 384, (192, 384), (48, 128), 128),
            nn.AdaptiveAvgPool2d(1),
        ),
        nn.Flatten(),
        nn.Linear(1024, num_classes),
    )


class InceptionA(nn.Module):
    """The small block of the notes: four branches without activation, 88 channels out."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.branch_pool = nn.Conv2d(in_channels, 24, 1)
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.branch1x1 = nn.Conv2d(in_channels, 16, 1)
        self.branch5x5_1 = nn.Conv2d(in_channels, 16, 1)
        self.branch5x5_2 = nn.Conv2d(16, 24, 5, padding=2)
        self.branch3x3_1 = nn.Conv2d(in_channels, 16, 1)
        self.branch3x3_2 = nn.Conv2d(16, 24, 3, padding=1)
        self.branch3x3_3 = nn.Conv2d(24, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        branch1x1 = self.branch1x1(x)
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3 = self.branch3x3_3(self.branch3x3_2(self.branch3x3_1(x)))
        branch_pool = self.branch_pool(self.pool(x))
        return torch.cat((branch1x1, branch5x5, branch3x3, branch_pool), dim=1)


class InceptionNet(nn.Module):
    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 10, 5)
        self.conv2 = nn.Conv2d(88, 20, 5)
        self.incep1 = InceptionA(10)
        self.incep2 = InceptionA(20)
        self.mp1 = nn.MaxPool2d(2)
        self.mp2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(1408, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.incep1(torch.relu(self.mp1(self.conv1(x))))
        x = self.incep2(torch.relu(self.mp2(self.conv2(x))))
        return self.fc(self.flatten(x))


def inception_net(in_channels: int = 1, num_classes: int = 10) -> InceptionNet:
    return InceptionNet(in_channels, num_classes)
