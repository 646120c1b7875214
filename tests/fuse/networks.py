"""Plain PyTorch networks, as users write them, for the tests of fuse, freeze and export."""

import torch
import torch.nn.functional as F
from torch import nn


def lenet() -> nn.Sequential:
    """The notes' LeNet as nn.Sequential."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.Sigmoid(), nn.AvgPool2d(2, 2)),
        *(nn.Conv2d(6, 16, 5), nn.Sigmoid(), nn.AvgPool2d(2, 2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10)),
    )


class NotesBlock(nn.Module):
    """The notes' plain residual block, written with functions."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        y = F.relu(self.conv1(x))
        y = self.conv2(y)
        return F.relu(x + y)


class NotesNet(nn.Module):
    """The notes' small residual net: functions, one max-pool module called twice, view by the batch size."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5)
        self.conv2 = nn.Conv2d(16, 32, 5)
        self.mp = nn.MaxPool2d(2)
        self.rblock1 = NotesBlock(16)
        self.rblock2 = NotesBlock(32)
        self.fc = nn.Linear(512, 10)

    def forward(self, x):
        in_size = x.size(0)
        x = self.rblock1(self.mp(F.relu(self.conv1(x))))
        x = self.rblock2(self.mp(F.relu(self.conv2(x))))
        return self.fc(x.view(in_size, -1))


class Residual(nn.Module):
    """conv, BN, ReLU, conv, BN, + shortcut, ReLU as torchvision has it: in place, one ReLU called twice."""

    def __init__(self, channels, out_channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels, momentum=None)
        self.downsample = None
        if stride != 1 or channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels, affine=False)
            )

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """A small ResNet with dropout that follows the training flag, for images of any size from 8."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.stage = nn.Sequential(Residual(8, 8), Residual(8, 12, 2))
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = dropout
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = torch.flatten(self.pool(self.stage(self.stem(x))), 1)
        return self.fc(F.dropout(x, self.dropout, training=self.training))


class Branches(nn.Module):
    """An Inception-like block: branches of several kinds side by side, grouped and dilated convolutions."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(6, 4, 1)
        self.b1 = nn.Conv2d(6, 4, 1)
        self.b2 = nn.Conv2d(4, 6, (1, 4), padding="same", groups=2)
        self.c = nn.Conv2d(6, 5, 3, padding=2, dilation=2)
        self.d = nn.Conv2d(6, 3, 1)
        self.norm = nn.BatchNorm2d(18)
        self.out = nn.Linear(18, 4)
        self.out_norm = nn.BatchNorm1d(4)

    def forward(self, x):
        a = self.a(x).relu()
        b = torch.sigmoid(self.b2(self.b1(x)))
        c = torch.relu(self.c(x))
        d = self.d(F.avg_pool2d(x, 3, stride=1, padding=1))
        x = F.relu(self.norm(torch.cat([a, b, c, d], dim=1)))
        x = F.avg_pool2d(x, kernel_size=x.size()[2:])
        return torch.sigmoid(self.out_norm(self.out(x.view(x.shape[0], -1))))


class PreActivation(nn.Module):
    """BN and ReLU in front of the convolutions, a sum without activation, the mean as global pooling."""

    def __init__(self):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)

    def forward(self, x):
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y), inplace=True))
        return self.pool(torch.add(x, y)).mean((2, 3))


class Blocks(nn.Module):
    """Chains of convolutions and pools that are concatenated, a dense block, a ReLU behind a max pool."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(2, 1), nn.ReLU(inplace=True))
        self.a = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU())
        self.b = nn.Sequential(
            nn.Conv2d(6, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 6, (3, 5), padding=(1, 2), groups=2)
        )
        self.c = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.Conv2d(6, 3, 1, bias=False))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 3, 3, padding=1)) for n in (25, 28)
        )
        self.norm = nn.BatchNorm2d(31)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(31, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU())

    def forward(self, x):
        x = self.stem(x)
        d = F.max_pool2d(x, 3, stride=1, padding=1)
        x = torch.cat((self.a(x), self.b(x), self.c(x), d, x), dim=1)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.fc(self.pool(torch.sigmoid(self.norm(x))))


NETWORKS = {
    "lenet": (lenet, (1, 28, 28)),
    "notes": (NotesNet, (1, 28, 28)),
    "resnet": (ResNet, (3, 17, 20)),
    "branches": (Branches, (6, 9, 11)),
    "preactivation": (PreActivation, (4, 10, 9)),
    "blocks": (Blocks, (3, 12, 11)),
}


def make(name: str) -> nn.Module:
    """A network with batch norms whose statistics and factors are no ones and zeros."""
    return liven(NETWORKS[name][0]())


def images(name: str, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *NETWORKS[name][1])


def liven(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return model
