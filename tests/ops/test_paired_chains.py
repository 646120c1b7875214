"""Stages of one branch of inception that share groups of bfloat16 images: as one operator after the other."""

import os
import subprocess
import sys

import pytest
import torch

from cnnfast import _ext, ops
from cnnfast.ops.inception import conv_stage, encode_branches, inception, pool_stage

from .support import needs_extension

pytestmark = needs_extension

MULTIPLIES = _ext.AVAILABLE and _ext.active_isa() in ("amx", "avx512_bf16")
PAIRS = "CNNFAST_BF16_PAIRS" in os.environ or MULTIPLIES
ROUNDING = 2.0**-8

# images, channels, size, convolutions (channels, kernel, stride, padding), window and stride of the pool
CHAINS = {
    "first layer": (9, 1, (230, 217), [(16, 7, 4, 0), (24, 1, 1, 0), (19, 1, 1, 0)], (3, 2)),
    "groups of images": (26, 12, (30, 30), [(48, 1, 1, 0), (40, 1, 1, 0)], None),
    "an image each": (9, 16, (42, 41), [(64, 3, 1, 1), (96, 1, 1, 0)], (3, 2)),
    "borders inside": (9, 16, (40, 38), [(24, 3, 1, 1), (48, 3, 1, 1), (16, 5, 1, 2)], (2, 2)),
    "one convolution, apart": (26, 16, (36, 34), [(32, 1, 1, 0)], (2, 1)),
    "strides": (41, 16, (65, 65), [(24, 3, 2, 1), (24, 2, 2, 0)], None),
    "gaps between the pixels read": (41, 16, (65, 65), [(24, 1, 2, 0), (24, 1, 1, 0)], (2, 2)),
    "few images": (3, 16, (20, 18), [(32, 1, 1, 0), (32, 1, 1, 0)], (2, 2)),
    "large weights": (40, 64, (8, 8), [(512, 1, 1, 0), (640, 1, 1, 0), (512, 1, 1, 0)], None),
}
# Those that are one on every CPU that multiplies pairs: backward at least.
JOINED = ("first layer", "groups of images")


class Chain:
    def __init__(self, name, activation="relu", dtype=torch.float32):
        torch.manual_seed(0)
        images, channels, size, self.convs, self.pool = CHAINS[name]
        self.activation = activation
        self.input = (
            torch.randn(images, channels, *size).bfloat16().contiguous(memory_format=torch.channels_last)
        )
        self.weights, self.biases = [], []
        for out, kernel, _, _ in self.convs:
            scale = (2 / (channels * kernel * kernel)) ** 0.5
            self.weights.append((torch.randn(out, channels, kernel, kernel) * scale).to(dtype))
            self.biases.append((torch.randn(out) / 8).to(dtype))
            channels = out

    def parameters(self):
        return [self.input, *self.weights, *self.biases]

    def at_once(self, input, weights, biases):
        stages = [conv_stage(k, s, p, activation=self.activation) for _, k, s, p in self.convs]
        if self.pool:
            stages.append(pool_stage("max", *self.pool))
        return inception(input, weights, biases, encode_branches([stages]))

    def one_by_one(self, x, weights, biases):
        for (_, _, stride, padding), weight, bias in zip(self.convs, weights, biases, strict=True):
            places = ((stride, stride), (padding, padding), (1, 1), 1)
            x = ops.conv2d(x, weight, bias, None, None, *places, self.activation)
        return ops.max_pool2d(x, *self.pool) if self.pool else x

    def run(self, how, wanted=None):
        """The output and the gradients of the input, the weights and the biases; None where not wanted."""
        count = len(self.weights)
        leaves = [t.detach().clone() for t in self.parameters()]
        for i, leaf in enumerate(leaves):
            leaf.requires_grad_(wanted is None or i in wanted)
        output = how(leaves[0], leaves[1 : 1 + count], leaves[1 + count :])
        torch.manual_seed(1)
        cotangent = torch.randn(output.shape).bfloat16().contiguous(memory_format=torch.channels_last)
        output.backward(cotangent)
        return output.detach(), [leaf.grad for leaf in leaves]


def assert_as(found, expected):
    (output, gradients), (true_output, true_gradients) = found, expected
    assert torch.equal(output, true_output)
    for own, true in zip(gradients, true_gradients, strict=True):
        assert (own is None) == (true is None)
        if own is None:
            continue
        assert own.dtype == true.dtype and own.shape == true.shape
        scale = true.float().abs().max().clamp_min(1e-3)
        assert (own.float() - true.float()).abs().max() <= 2 * ROUNDING * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["master weights", "bfloat16"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "none"])
@pytest.mark.parametrize("name", CHAINS)
def test_chain(name, activation, dtype):
    chain = Chain(name, activation, dtype)
    assert_as(chain.run(chain.at_once), chain.run(chain.one_by_one))


@pytest.mark.parametrize("name", CHAINS)
def test_chain_does_not_depend_on_threads(name):
    chain = Chain(name)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            output, gradients = chain.run(chain.at_once)
            results.append([output, *gradients])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


# Places among input, three weights, three biases.
@pytest.mark.parametrize("wanted", [{0}, {3}, {2, 6}, {4}, {1, 2, 3}, {0, 5}, {6}], ids=str)
@pytest.mark.parametrize("name", ["first layer", "borders inside"])
def test_gradients_only_where_wanted(name, wanted):
    chain = Chain(name)
    assert_as(chain.run(chain.at_once, wanted), chain.run(chain.one_by_one, wanted))


def test_without_biases_and_in_other_memory():
    chain = Chain("groups of images")
    chain.biases = [chain.biases[0], None]

    def run(how):
        input = chain.input.contiguous().requires_grad_()
        weights = [weight.clone().requires_grad_() for weight in chain.weights]
        output = how(input, weights, chain.biases)
        cotangent = torch.linspace(-1, 1, output.numel()).sin().view(output.shape).bfloat16()
        return output.detach(), torch.autograd.grad(output, [input, *weights], cotangent)

    assert_as(run(chain.at_once), run(chain.one_by_one))


def test_nan_stays_in_its_image():
    chain = Chain("groups of images")
    chain.input[5, 3, 2, 1] = float("nan")
    output, gradients = chain.run(chain.at_once)
    assert output[5, :, 2, 1].isnan().all()
    output[5] = 0
    assert not output.isnan().any()
    assert gradients[1].isnan().any()


@pytest.mark.skipif(not MULTIPLIES, reason="products are not of pairs")
@pytest.mark.parametrize("name", JOINED)
def test_backward_is_one_pass(name):
    """No convolution's gradient by itself: else all of this would test nothing."""
    chain = Chain(name)
    with torch.profiler.profile() as profile:
        chain.run(chain.at_once)
    names = [event.key for event in profile.key_averages()]
    assert "cnnfast::inception_backward" in names
    alone = {"cnnfast::conv2d_backward", "cnnfast::max_pool2d_backward"} & set(names)
    assert not alone or (name == "first layer" and alone == {"cnnfast::conv2d_backward"})


@pytest.mark.parametrize("place", ["grad_output", "output"])
def test_gradient_of_another_shape_is_an_error(place):
    chain = Chain("groups of images")
    branches = encode_branches([[conv_stage(1, activation="relu") for _ in chain.convs]])
    outputs = torch.ops.cnnfast.inception(chain.input, chain.weights, chain.biases, branches)
    grad = torch.zeros_like(outputs[0])
    if place == "grad_output":
        grad = grad[:, :, 1:]
    else:
        outputs[1] = outputs[1][:, :, 1:]
    with pytest.raises(RuntimeError, match="inception_backward: .* has shape"):
        torch.ops.cnnfast.inception_backward(grad, chain.input, chain.weights, outputs, branches, [True] * 5)


@pytest.mark.skipif(PAIRS, reason="these are such products already")
def test_with_products_of_pairs():
    """The same tests with the work done as on CPUs that multiply bfloat16."""
    run_elsewhere(CNNFAST_BF16_PAIRS="1")


@pytest.mark.skipif(
    "CNNFAST_BF16_PAIRS" in os.environ or "CNNFAST_EMULATED_ISA" in os.environ or not PAIRS,
    reason="no other way",
)
def test_every_product_of_pairs():
    """Where vectors multiply pairs they need not in every layer."""
    run_elsewhere(CNNFAST_BF16_PAIRS="1")


def run_elsewhere(**variables):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
