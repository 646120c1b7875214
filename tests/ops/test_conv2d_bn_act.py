"""conv2d_bn_act against Conv2d and BatchNorm2d one after another, in training and evaluation."""

import copy
import itertools

import pytest
import torch
from torch import nn

from cnnfast import ops

from .support import assert_near


def run(conv, bn, input, residual=None, activation="relu"):
    """What a module would do with the holders conv and bn."""
    return ops.conv2d_bn_act(
        input,
        conv.weight,
        conv.bias,
        bn.weight,
        bn.bias,
        bn.running_mean,
        bn.running_var,
        residual,
        bn.training,
        0.1 if bn.momentum is None else bn.momentum,
        bn.eps,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        activation,
    )


def layers(**options):
    conv = nn.Conv2d(5, 6, 3, padding=1, bias=options.pop("bias", True))
    bn = nn.BatchNorm2d(6, **options)
    if bn.running_mean is not None:
        bn.running_mean.uniform_(-0.5, 0.5)
        bn.running_var.uniform_(0.5, 2.0)
    if bn.affine:
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.uniform_(bn.bias, -0.5, 0.5)
    return conv, bn


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("bias, affine, tracks", list(itertools.product((False, True), repeat=3)), ids=str)
def test_conv2d_bn_act(training, bias, affine, tracks):
    conv, bn = layers(bias=bias, affine=affine, track_running_stats=tracks, momentum=0.3, eps=1e-3)
    bn.train(training)
    true_conv, true_bn = copy.deepcopy(conv).double(), copy.deepcopy(bn).double()
    input, residual = torch.randn(3, 5, 7, 8), torch.randn(3, 6, 7, 8)
    actual = run(conv, bn, input, residual)
    truth = torch.relu(true_bn(true_conv(input.double())) + residual.double())
    assert_near(actual, truth, 2e-5)
    if tracks:
        assert_near(bn.running_mean, true_bn.running_mean)
        assert_near(bn.running_var, true_bn.running_var)


def test_conv2d_bn_act_evaluation_gradients():
    """Fine-tuning with frozen statistics: the affine parameters still learn."""
    conv, bn = layers()
    bn.eval()
    true_conv, true_bn = copy.deepcopy(conv).double(), copy.deepcopy(bn).double()
    input = torch.randn(2, 5, 6, 6)
    cotangent = torch.randn(2, 6, 6, 6)
    run(conv, bn, input, activation="sigmoid").backward(cotangent)
    torch.sigmoid(true_bn(true_conv(input.double()))).backward(cotangent.double())
    for own, true in zip(
        (conv.weight, conv.bias, bn.weight, bn.bias),
        (*true_conv.parameters(), *true_bn.parameters()),
        strict=True,
    ):
        assert_near(own.grad, true.grad, 2e-5)


def test_conv2d_bn_act_needs_two_values_for_a_variance():
    conv, bn = layers()
    before = bn.running_var.clone()
    with pytest.raises(ValueError, match="more than (one|1) value per channel"):
        run(nn.Conv2d(5, 6, 3), bn, torch.randn(1, 5, 3, 3))
    assert torch.equal(bn.running_var, before)


def test_conv2d_bn_act_batch_of_zero_leaves_the_averages():
    conv, bn = layers()
    before = bn.running_mean.clone(), bn.running_var.clone()
    assert run(conv, bn, torch.randn(0, 5, 6, 6)).shape == (0, 6, 6, 6)
    assert torch.equal(bn.running_mean, before[0]) and torch.equal(bn.running_var, before[1])


def test_conv2d_bn_act_error_leaves_the_averages():
    conv, bn = layers()
    before = bn.running_mean.clone()
    with pytest.raises(RuntimeError):
        run(conv, bn, torch.randn(2, 4, 6, 6))
    assert torch.equal(bn.running_mean, before)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_conv2d_bn_act_averages_in_float32_beside_bfloat16(training):
    conv, bn = layers()
    bn.train(training)
    input, before = torch.randn(2, 5, 6, 6), bn.running_mean.clone()
    truth = torch.relu(copy.deepcopy(bn)(conv(input)))
    actual = run(conv.bfloat16(), bn, input.bfloat16())
    assert actual.dtype == torch.bfloat16 and bn.running_mean.dtype == torch.float32
    assert_near(actual, truth, 3e-2)
    assert torch.equal(bn.running_mean, before) != training
