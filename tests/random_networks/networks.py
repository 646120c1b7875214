"""Networks made at random: layers in every combination that shapes allow, by seed."""

import random

import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Mish, nn.PReLU),
    *(nn.LeakyReLU, nn.Hardsigmoid, nn.Softplus, nn.SELU),
)


class RandomNet(nn.Module):
    """Steps, each a layer (by number) or a function of values made before; the last is an output."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList()
        self.steps = []
        self.channels = []
        self.places = []  # values of one number have the same height and width
        maker = _Maker(self, random.Random(seed))
        for _ in range(maker.rng.randint(4, 12)):
            maker.add_step()
        self.outputs = maker.outputs()

    def forward(self, x):
        values = [x]
        for step, inputs in self.steps:
            function = self.layers[step] if isinstance(step, int) else step
            values.append(function(*(values[i] for i in inputs)))
        found = tuple(values[i] for i in self.outputs)
        return found if len(found) > 1 else found[0]


class _Maker:
    def __init__(self, net: RandomNet, rng: random.Random):
        self.net, self.rng = net, rng
        net.channels.append(rng.choice((1, 3, 4, 8, 12)))
        net.places.append(0)
        self.kinds = {
            **{self.convolution: 8, self.transposed: 1, self.activation: 2, self.norm: 3, self.pool: 2},
            **{self.joined: 4, self.concatenated: 3, self.gated: 2, self.half: 1, self.shuffled: 1},
            **{self.resized: 1, self.padded: 1, self.cropped: 1, self.scaled: 2},
        }

    def add_step(self) -> None:
        last = len(self.net.channels) - 1
        source = last if self.rng.random() < 0.75 else self.rng.randrange(last + 1)
        kind = self.rng.choices(list(self.kinds), list(self.kinds.values()))[0]
        kind(source)

    def outputs(self) -> list[int]:
        last = len(self.net.channels) - 1
        return sorted({last, self.rng.randrange(last + 1)} if self.rng.random() < 0.25 else {last})

    def add(self, step, inputs, channels, same_size=True) -> int:
        if isinstance(step, nn.Module):
            self.net.layers.append(step)
            step = len(self.net.layers) - 1
        self.net.steps.append((step, list(inputs)))
        self.net.channels.append(channels)
        self.net.places.append(self.net.places[inputs[0]] if same_size else len(self.net.places))
        return len(self.net.channels) - 1

    def alike(self, source: int, channels: bool = True) -> list[int]:
        size = self.net.places[source]
        return [
            i
            for i, c in enumerate(self.net.channels)
            if self.net.places[i] == size and (not channels or c == self.net.channels[source])
        ]

    def convolution(self, source):
        rng, inputs = self.rng, self.net.channels[source]
        kernel = rng.choice(((1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (1, 3), (5, 1), (1, 7), (2, 2)))
        dilation, stride = rng.choice((1, 1, 1, 2, 3)), rng.choice((1, 1, 1, 2, (1, 2), 3))
        outputs = rng.choice((1, 3, 8, 12, 16, 24, 32, 33, 64))
        groups = rng.choice((1, 1, 2, 4, inputs))
        if groups == inputs:
            outputs = inputs * rng.choice((1, 2))
        elif inputs % groups or outputs % groups:
            groups = 1
        even = tuple(dilation * (side - 1) // 2 for side in kernel)
        padding = rng.choice((even, even, even, 0, (2, 1)))
        mode = rng.choice(("zeros", "zeros", "zeros", "replicate", "circular"))
        bias, kept = rng.random() < 0.6, stride == 1 and padding == even and kernel != (2, 2)
        settings = (kernel, stride, padding, dilation, groups, bias, mode)
        made = self.add(nn.Conv2d(inputs, outputs, *settings), [source], outputs, kept)
        if rng.random() < 0.5:
            made = self.add(nn.BatchNorm2d(outputs), [made], outputs)
        if rng.random() < 0.6:
            self.activation(made)

    def transposed(self, source):
        outputs, kernel = self.rng.choice((4, 8, 16)), self.rng.choice((2, 3, 4))
        layer = nn.ConvTranspose2d(self.net.channels[source], outputs, kernel, 2, kernel // 2)
        self.add(layer, [source], outputs, same_size=False)

    def activation(self, source):
        self.add(self.rng.choice(ACTIVATIONS)(), [source], self.net.channels[source])

    def norm(self, source):
        channels = self.net.channels[source]
        groups = self.rng.choice([n for n in (1, 2, 3, 4, channels) if channels % n == 0])
        kinds = (
            nn.BatchNorm2d(channels),
            nn.InstanceNorm2d(channels, affine=True),
            nn.GroupNorm(groups, channels),
            nn.LocalResponseNorm(3),
        )
        self.add(self.rng.choice(kinds), [source], channels)

    def pool(self, source):
        rng, kernel = self.rng, self.rng.choice((2, 3, (1, 3), (3, 2)))
        kind, stride, ceil = (
            rng.choice((nn.MaxPool2d, nn.AvgPool2d)),
            rng.choice((1, 2, 3)),
            rng.random() < 0.3,
        )
        self.add(kind(kernel, stride, ceil_mode=ceil), [source], self.net.channels[source], same_size=False)

    def joined(self, source):
        function = self.rng.choice((torch.add, torch.sub, torch.mul))
        self.add(function, [source, self.rng.choice(self.alike(source))], self.net.channels[source])

    def concatenated(self, source):
        parts = [source, *self.rng.choices(self.alike(source, channels=False), k=self.rng.randint(1, 3))]
        self.add(lambda *values: torch.cat(values, 1), parts, sum(self.net.channels[i] for i in parts))

    def gated(self, source):
        channels = self.net.channels[source]
        narrow = max(1, channels // 4)
        gate = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, narrow, 1), nn.ReLU()),
            *(nn.Conv2d(narrow, channels, 1), nn.Sigmoid()),
        )
        self.add(torch.mul, [source, self.add(gate, [source], channels, same_size=False)], channels)

    def half(self, source):
        channels, which = self.net.channels[source], self.rng.randrange(2)
        if channels % 2 == 0:
            self.add(lambda x: x.chunk(2, 1)[which], [source], channels // 2)

    def shuffled(self, source):
        if self.net.channels[source] % 2 == 0:
            self.add(lambda x: F.channel_shuffle(x, 2), [source], self.net.channels[source])

    def resized(self, source):
        mode, size = self.rng.choice(("nearest", "bilinear")), self.rng.choice(((9, 11), (20, 13)))
        channels = self.net.channels[source]
        self.add(lambda x: F.interpolate(x, size, mode=mode), [source], channels, same_size=False)

    def padded(self, source):
        sides = [self.rng.randint(0, 2) for _ in range(4)]
        self.add(lambda x: F.pad(x, sides), [source], self.net.channels[source], same_size=False)

    def cropped(self, source):
        which = self.rng.choice((lambda x: x[:, :, ::2, ::2], lambda x: x[:, :, 1:, :-1]))
        self.add(which, [source], self.net.channels[source], same_size=False)

    def scaled(self, source):
        self.add(_Scale(self.net.channels[source]), [source], self.net.channels[source])


class _Scale(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.factor = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x):
        return x * self.factor


def network(seed: int) -> tuple[RandomNet, list[torch.Tensor]]:
    """The first network from a seed on that runs, and three inputs of unlike sizes, one of a single image."""
    for attempt in range(100):
        net = liven(RandomNet(1000 * seed + attempt)).eval()
        sizes = ((2, 24, 31), (1, 17, 28), (3, 33, 24))
        inputs = [torch.randn(count, net.channels[0], *size) for count, *size in sizes]
        if all(_runs(net, x) for x in inputs):
            return net, inputs
    raise AssertionError(f"no network of seed {seed} runs")


def liven(net: nn.Module) -> nn.Module:
    """Batch norms as they are after some training."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, 0, 0.2), nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias, 0, 0.2)
    return net


def _runs(net: RandomNet, x: torch.Tensor) -> bool:
    try:
        with torch.no_grad():
            found = net(x)
    except (RuntimeError, ValueError):  # sizes that shrink to nothing, or do not meet
        return False
    return all(t.numel() and t.isfinite().all() for t in (found if isinstance(found, tuple) else (found,)))
