"""Where the steps of a plan wait for each other, which memory they share, how many threads they take."""

import re
import time

import pytest
import torch

import cnnfast
from cnnfast.nn import Inception

from .support import assert_near, needs_extension, truth

pytestmark = needs_extension


def phases_of(frozen, x):
    """The phase of every node's step, in the order in which they run."""
    text = torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan)
    found = re.findall(r"^phase (\d+), node (\d+): (.*)$", text, re.M)
    assert found and len(found) == text.count("node ")
    return [(int(phase), what) for phase, _, what in found]


def test_branches_share_phases():
    x = torch.randn(2, 16, 12, 12)
    block = Inception(16, 8, (4, 8), (4, 8), 8).eval()
    steps = phases_of(cnnfast.freeze(block, x), x)
    phases = [phase for phase, _ in steps]
    assert phases == sorted(phases)
    # Behind the input: four branches begin; their second layers follow.
    convolutions = [phase for phase, what in steps if "conv" in what]
    assert len(convolutions) == 6 and len(set(convolutions)) == 2
    assert max(phases) <= 3


def test_large_values_keep_the_order_of_the_network():
    """A step finds what the one before it wrote in cache; only neighbours share a phase."""
    x = torch.randn(8, 16, 48, 48)
    block = Inception(16, 8, (4, 8), (4, 8), 8).eval()
    frozen = cnnfast.freeze(block, x)
    text = torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan)
    nodes = [int(node) for node in re.findall(r"^phase \d+, node (\d+)", text, re.M)]
    assert nodes == sorted(nodes)
    assert_near(frozen(x), truth(block, x))


def test_a_chain_has_one_step_a_phase():
    x = torch.randn(2, 4, 9, 9)
    chain = torch.nn.Sequential(*(torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))).eval()
    phases = [phase for phase, _ in phases_of(cnnfast.freeze(chain, x), x)]
    assert phases == list(range(len(phases)))


class Rejoined(torch.nn.Module):
    """A value that is read again after other layers have run: its memory must not be taken meanwhile."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(6))

    def forward(self, x):
        a, b, c, d, e, f = self.layers
        first = a(x)
        left, right = c(b(first).relu()), e(d(first).relu())
        return torch.cat((f(left + right), first, right), 1)


@pytest.mark.parametrize("size", [(1, 8, 7, 9), (5, 8, 12, 12)], ids=str)
def test_values_that_are_read_in_later_phases(size):
    net, x = Rejoined().eval(), torch.randn(size)
    frozen = cnnfast.freeze(net, x)
    exact = truth(net, x)
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for _ in range(3):
                assert_near(frozen(x), exact)
        finally:
            torch.set_num_threads(before)


def test_small_network_gives_the_same_bits_at_every_pace():
    net = cnnfast.models.get_model("lenet").eval()
    x = torch.randn(1, 1, 28, 28)
    frozen = cnnfast.freeze(net, x)
    with torch.inference_mode():
        alone = frozen(x)  # on one thread: no call was near
        close = [frozen(x) for _ in range(100)]
        time.sleep(0.01)
        again = frozen(x)
    assert all(torch.equal(y, alone) for y in close) and torch.equal(again, alone)


class Residuals(torch.nn.Module):
    """Blocks whose sums may be written over their residuals, but for the one that is read again."""

    def __init__(self, read_again):
        super().__init__()
        self.read_again = read_again
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(6))

    def forward(self, x):
        a, b, c, d, e, f = self.layers
        first = a(x).relu()
        second = (c(b(first).relu()) + first).relu()
        third = (e(d(second).relu()) + second).relu()
        last = f(third)
        return last + first if self.read_again else last


@pytest.mark.parametrize("read_again", [False, True])
@pytest.mark.parametrize("size", [(2, 32, 26, 25), (1, 32, 12, 12)], ids=str)
def test_sums_over_their_residuals(read_again, size):
    net, x = Residuals(read_again).eval(), torch.randn(size)
    frozen = cnnfast.freeze(net, x)
    text = torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan)
    assert text.count("winograd") == 6
    for _ in range(2):
        assert_near(frozen(x), truth(net, x))
    buffer = size[0] * (size[2] + 2) * (size[3] + 2) * 32 * 4
    buffers = int(re.search(r"arena (\d+) bytes", text)[1]) / buffer
    assert buffers < (4.0 if read_again else 3.0)


def test_sum_does_not_overwrite_what_a_concatenation_shares():
    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(4))

        def forward(self, x):
            a, b, c, d = self.layers
            first = a(x).relu()
            kept = torch.cat([first], 1)  # the same memory
            return d(c(b(first).relu()) + first) + kept

    net, x = Shared().eval(), torch.randn(2, 32, 24, 24)
    assert_near(cnnfast.freeze(net, x)(x), truth(net, x))


def test_resnet18_takes_less_than_half_of_the_memory_of_eager():
    """Eager's peak: the first convolution's output and the batch norm's, 2 * 64 * 48 * 48 floats an image."""
    net = cnnfast.models.get_model("resnet18").eval()
    for batch in (1, 16):
        x = torch.randn(batch, 1, 96, 96)
        frozen = cnnfast.freeze(net, x)
        text = torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan)
        assert int(re.search(r"arena (\d+) bytes", text)[1]) <= batch * 2 * 64 * 48 * 48 * 4 / 2


@pytest.mark.parametrize("pool", [torch.nn.MaxPool2d(3, 2), torch.nn.AvgPool2d(2, 2, padding=1)])
@pytest.mark.parametrize("kernel, channels", [(3, 5), (3, 40), (5, 17)])
def test_convolution_norm_and_pooling_share_a_step(pool, kernel, channels):
    """Rows are normalised and pooled while they are in cache; a NaN stays in the windows that hold it."""
    norm = torch.nn.LocalResponseNorm(5, alpha=0.3, k=2.0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, channels, kernel, padding=1), torch.nn.ReLU(), norm, pool, torch.nn.ReLU()
    ).eval()
    x = torch.randn(2, 3, 31, 29)
    frozen = cnnfast.freeze(model, x, winograd=False)
    text = torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan)
    assert "with local response norm and" in text and text.count("local response norm") == 1
    assert_near(frozen(x), truth(model, x))
    x[1, 0, 12, 13] = float("nan")
    assert torch.equal(torch.isnan(frozen(x)), torch.isnan(model(x)))


def test_a_norm_that_is_read_twice_keeps_its_own_step():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 6, 3), torch.nn.LocalResponseNorm(3)

        def forward(self, x):
            y = self.norm(self.conv(x))
            return torch.nn.functional.max_pool2d(y, 2) + torch.nn.functional.avg_pool2d(y, 2)

    model, x = Twice().eval(), torch.randn(2, 3, 12, 14)
    frozen = cnnfast.freeze(model, x)
    assert "with local" not in torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan)
    assert_near(frozen(x), truth(model, x))
