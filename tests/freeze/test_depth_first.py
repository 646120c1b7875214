"""Steps that run one after another for a few images, or a strip of one, before the next ones begin."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import cnnfast
from cnnfast import _ext

from .support import assert_independent_of_threads, needs_extension, steps_of, takes_pairs, truth

pytestmark = needs_extension
needs_pairs = pytest.mark.skipif(not takes_pairs(), reason="run again with pairs, below")


def block(channels, out, kernel, **options):
    pointwise = (nn.Conv2d(out, out, 1), nn.ReLU(), nn.Conv2d(out, out, 1), nn.ReLU())
    return nn.Sequential(nn.Conv2d(channels, out, kernel, **options), nn.ReLU(), *pointwise)


class Residual(nn.Module):
    """Sums written over what they add, and a strided shortcut."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 48, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(48, 48, 3, padding=1) for _ in range(4))
        self.down, self.short = nn.Conv2d(48, 64, 3, stride=2, padding=1), nn.Conv2d(48, 64, 1, stride=2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        for i in (0, 2):
            x = torch.relu(x + self.inner[i + 1](torch.relu(self.inner[i](x))))
        return torch.relu(self.down(x) + self.short(x))


class Branches(nn.Module):
    """Concatenated slices, poolings, and a norm in front of a convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 40, 3, padding=1)
        self.one, self.five = nn.Conv2d(40, 24, 1), nn.Conv2d(40, 24, 5, padding=2)
        self.norm = nn.BatchNorm2d(88)
        self.last = nn.Conv2d(88, 16, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        pooled = nn.functional.max_pool2d(x, 3, 1, 1)
        x = torch.cat((torch.relu(self.one(x)), torch.relu(self.five(x)), pooled), 1)
        return nn.functional.avg_pool2d(self.last(torch.relu(self.norm(x))), 2)


NETWORKS = {
    "network in network": lambda: nn.Sequential(block(1, 48, 5, stride=2), nn.MaxPool2d(3, 2)),
    "residual": Residual,
    "branches": Branches,
}


def frozen_and_images(model, images):
    torch.manual_seed(0)
    model = model.eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
    x = torch.randn(images)
    with torch.no_grad():
        return cnnfast.freeze(model, x, dtype=torch.bfloat16, strict=True), x


def assert_as_eager(model, frozen, x):
    """The error is at most twice that of eager autocast."""
    wanted = truth(model, x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        eager = model(x)
    error, allowed = ((y.double() - wanted).square().mean().sqrt() for y in (frozen(x), eager))
    assert error <= 2 * allowed + 2**-11 * wanted.abs().max()


def assert_right_by_strips(model, frozen, x):
    assert_as_eager(model, frozen, x)
    assert_independent_of_threads(frozen, x)
    assert torch.equal(frozen(x[1:2]), frozen(x)[1:2])


@needs_pairs
@pytest.mark.parametrize("network", NETWORKS)
def test_whole_images_at_a_time(network):
    """Batches that threads share evenly or not; with fewer images than threads steps run one by one."""
    torch.manual_seed(1)
    model = NETWORKS[network]()
    size = (12, 1, 75, 73) if network == "network in network" else (12, 3, 45, 43)
    frozen, x = frozen_and_images(model, size)
    for images in (12, 7, 2):
        part = x[:images]
        if images == 12:
            found = re.search(r"depth first: (\d+) steps (\d+) images at a time", steps_of(frozen, part))
            assert found and int(found[1]) >= 4 and 1 <= int(found[2]) < 12, steps_of(frozen, part)
        assert_as_eager(model, frozen, part)
        assert_independent_of_threads(frozen, part)
        assert torch.equal(frozen(part)[1:2], frozen(x)[1:2])


@needs_pairs
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [(1, 3, 131, 301), (3, 3, 133, 260)])
def test_strips_of_an_image(size, padding):
    """Rows that two strips need stay for the second; the next layer finds zeros around the images."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.ReLU6(),
        nn.Conv2d(32, 40, 1),
        nn.MaxPool2d(2),
    )
    frozen, x = frozen_and_images(model, size)
    # Two or more: how many leave the cache depends on its size.
    assert re.search(r"depth first: \d+ steps \d+ rows at a time", steps_of(frozen, x)), steps_of(frozen, x)
    assert_as_eager(model, frozen, x)
    assert_independent_of_threads(frozen, x)


class InvertedResiduals(nn.Module):
    """Expansion, depthwise convolution, projection; the second sum reads what was there before its strips."""

    def __init__(self, kernel, stride):
        super().__init__()
        self.first = nn.Conv2d(3, 24, 1)
        sizes = ((24, stride), (24, 1))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, 144, 1),
                nn.ReLU6(),
                nn.Conv2d(144, 144, kernel, step, kernel // 2, groups=144),
                nn.ReLU6(),
                nn.Conv2d(144, 24, 1),
            )
            for channels, step in sizes
        )

    def forward(self, x):
        x = self.blocks[0](self.first(x))
        return x + self.blocks[1](x)


@needs_pairs
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1)])
def test_strips_through_depthwise_convolutions(kernel, stride):
    torch.manual_seed(4)
    model = InvertedResiduals(kernel, stride)
    frozen, x = frozen_and_images(model, (3, 3, 121, 90))
    found = re.findall(r"depth first: (\d+) steps \d+ rows at a time", steps_of(frozen, x))
    assert found and max(map(int, found)) >= 3, steps_of(frozen, x)
    assert_right_by_strips(model, frozen, x)


class DepthwiseFirst(nn.Module):
    """A sum of what its own strips hand on: two layers read the stem's rows, at different distances."""

    def __init__(self, kernel):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, 2, 1)
        self.spread = nn.Conv2d(24, 24, kernel, 1, kernel // 2, groups=24)
        self.project = nn.Conv2d(24, 24, 1)
        self.last = nn.Conv2d(24, 8, 3, padding=1)

    def forward(self, x):
        x = nn.functional.hardswish(self.stem(x))
        x = x + self.project(torch.relu(self.spread(x)))
        return self.last(x)


@needs_pairs
@pytest.mark.parametrize("kernel", [3, 5])
def test_strips_that_add_what_they_hand_on(kernel):
    torch.manual_seed(5)
    model = DepthwiseFirst(kernel)
    frozen, x = frozen_and_images(model, (3, 3, 243, 250))
    found = re.findall(r"depth first: (\d+) steps \d+ rows at a time", steps_of(frozen, x))
    assert found and max(map(int, found)) >= 3, steps_of(frozen, x)
    assert_right_by_strips(model, frozen, x)


class Bottlenecks(nn.Module):
    """Sums of what a block begins with, whose rows the next strip reads again."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 64, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(64, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 64, 1)
            )
            for _ in range(2)
        )

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return x


@needs_pairs
def test_strips_that_add_what_they_begin_with():
    """Tiles wait for memory there; other products pass through the layers one by one, or two at a time."""
    torch.manual_seed(6)
    model = Bottlenecks()
    frozen, x = frozen_and_images(model, (3, 3, 98, 95))
    found = [int(n) for n in re.findall(r"depth first: (\d+) steps \d+ rows at a time", steps_of(frozen, x))]
    assert max(found, default=0) >= 3 or _ext.active_isa() != "amx", steps_of(frozen, x)
    assert_right_by_strips(model, frozen, x)


class SqueezeExcite(nn.Module):
    """Means and convolutions of one pixel between those of images."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 48, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "spread": nn.Sequential(
                        nn.Conv2d(48, 160, 1),
                        nn.ReLU(),
                        nn.Conv2d(160, 160, 3, padding=1, groups=160),
                        nn.ReLU(),
                    ),
                    "gate": nn.Sequential(
                        nn.AdaptiveAvgPool2d(1),
                        nn.Conv2d(160, 40, 1),
                        nn.ReLU(),
                        nn.Conv2d(40, 160, 1),
                        nn.Sigmoid(),
                    ),
                    "project": nn.Conv2d(160, 48, 1),
                }
            )
            for _ in range(2)
        )

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            y = block["spread"](x)
            x = x + block["project"](y * block["gate"](y))
        return x


@needs_pairs
def test_images_pass_through_squeeze_excite():
    torch.manual_seed(5)
    model = SqueezeExcite()
    frozen, x = frozen_and_images(model, (16, 3, 25, 26))
    found = re.findall(r"depth first: (\d+) steps \d+ images at a time", steps_of(frozen, x))
    assert found and max(map(int, found)) >= 12, steps_of(frozen, x)
    assert_as_eager(model, frozen, x)
    assert_independent_of_threads(frozen, x)
    assert torch.equal(frozen(x[1:3]), frozen(x)[1:3])


@needs_pairs
def test_pixels_a_kibibyte_apart_are_spread():
    """512 channels: the rows of a tile would share a few sets of the first-level cache."""
    model = nn.Sequential(nn.Conv2d(3, 512, 1), nn.ReLU(), nn.Conv2d(512, 16, 3, padding=1))
    frozen, x = frozen_and_images(model, (2, 3, 9, 11))
    assert "channels 0 to 512 of 544" in steps_of(frozen, x)
    assert_as_eager(model, frozen, x)


@needs_pairs
def test_calls_at_once_and_profile():
    """Threads of several callers have memory of their own; the profile counts the steps of a group."""
    model = NETWORKS["residual"]()
    frozen, x = frozen_and_images(model, (12, 3, 45, 43))
    parts = [torch.randn_like(x) for _ in range(4)]
    wanted = [frozen(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(map(torch.equal, pool.map(frozen, parts), wanted))
    seconds = torch.ops.cnnfast.profile_plan([x], frozen.weights, frozen.plan)[1]
    assert (seconds > 0).sum() >= 8


@pytest.mark.skipif(takes_pairs(), reason="the tests above ran with pairs")
def test_with_pairs():
    """As CPUs with bfloat16 arithmetic run it, on widened products."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"CNNFAST_BF16_PAIRS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
