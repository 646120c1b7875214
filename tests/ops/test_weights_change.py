"""Weights that change after a first call: a packed copy must never be used for other values."""

import os

import pytest
import torch

from cnnfast import ops, reference

from .support import assert_near


def layer(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Conv2d(5, 9, 3, padding=1)


def check(conv, input):
    actual = ops.conv2d(input, conv.weight, conv.bias, padding=1)
    truth = reference.conv2d(input.double(), conv.weight.double(), conv.bias.double(), padding=1)
    assert_near(actual, truth)


CHANGES = {
    "in_place": lambda conv: torch.nn.init.normal_(conv.weight),
    "one_element": lambda conv: _set(conv.weight, (1, 2, 0, 1), 30.0),
    "copy": lambda conv: conv.load_state_dict(layer(1).state_dict()),
    "assign": lambda conv: conv.load_state_dict(layer(1).state_dict(), assign=True),
    "parameter_replaced": lambda conv: setattr(conv, "weight", torch.nn.Parameter(torch.randn(9, 5, 3, 3))),
    "through_a_view": lambda conv: _set(conv.weight[3], (0, 1, 1), -20.0),
    "layout": lambda conv: conv.to(memory_format=torch.channels_last),
    "double_and_back": lambda conv: conv.double().float(),
    "optimiser": lambda conv: _step(conv),
}


def _set(tensor, place, value):
    with torch.no_grad():
        tensor[place] = value


def _step(conv):
    optimiser = torch.optim.SGD(conv.parameters(), lr=0.5)
    ops.conv2d(torch.randn(1, 5, 6, 6), conv.weight, conv.bias, padding=1).square().sum().backward()
    optimiser.step()


@pytest.mark.parametrize("change", CHANGES)
def test_conv2d_follows_its_weight(change):
    conv, input = layer(), torch.randn(2, 5, 7, 6)
    for _ in range(2):
        check(conv, input)
        CHANGES[change](conv)
    check(conv, input)


def test_conv2d_follows_its_weight_in_inference_mode():
    """Inference tensors have no version to compare."""
    with torch.inference_mode():
        conv, input = layer(), torch.randn(2, 5, 7, 6)
        check(conv, input)
        conv.weight.mul_(-3.0)
        check(conv, input)


def test_conv2d_follows_a_parameter_changed_in_inference_mode():
    conv, input = layer(), torch.randn(2, 5, 7, 6)
    check(conv, input)
    with torch.inference_mode():
        conv.weight.mul_(-3.0)
    check(conv, input)


@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer does not give out an address again"
)
def test_conv2d_new_weight_at_the_address_of_an_old_one():
    input = torch.randn(1, 5, 7, 6)
    addresses = set()
    for _ in range(20):
        weight = torch.randn(9, 5, 3, 3)
        addresses.add(weight.data_ptr())
        truth = reference.conv2d(input.double(), weight.double(), padding=1)
        assert_near(ops.conv2d(input, weight, padding=1), truth)
        del weight
    assert len(addresses) < 20, "the allocator never gave the same address twice: nothing was tested"


def test_conv2d_one_memory_seen_as_two_weights():
    memory, input = torch.randn(2 * 9 * 5 * 3 * 3), torch.randn(1, 5, 7, 6)
    for offset in (0, 7, 405):
        weight = memory[offset : offset + 405].view(9, 5, 3, 3)
        truth = reference.conv2d(input.double(), weight.double(), padding=1)
        assert_near(ops.conv2d(input, weight, padding=1), truth)


def test_conv2d_one_weight_in_two_groupings():
    weight = torch.randn(6, 2, 3, 3)
    for groups in (1, 2, 3, 1):
        input = torch.randn(1, 2 * groups, 6, 5)
        truth = reference.conv2d(input.double(), weight.double(), groups=groups)
        assert_near(ops.conv2d(input, weight, groups=groups), truth)


def test_linear_follows_its_weight():
    fc, input = torch.nn.Linear(12, 7), torch.randn(3, 12)
    for _ in range(3):
        truth = reference.linear(input.double(), fc.weight.double(), fc.bias.double(), "relu")
        assert_near(ops.linear(input, fc.weight, fc.bias, "relu"), truth)
        with torch.no_grad():
            fc.weight.mul_(-2.0)
            fc.bias.add_(1.0)
