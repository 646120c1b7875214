"""Children that a fused layer must not bypass: hooks, SyncBatchNorm, parametrisations; and those it may."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import cnnfast.nn as fast

from .support import close, plain


@pytest.fixture
def layer():
    made = fast.ConvBNReLU2d(4, 6, 3, padding=1)
    made(torch.randn(4, 4, 6, 6))  # running averages other than 0 and 1
    return made


INPUT = torch.linspace(-2, 2, 2 * 4 * 5 * 5).sin().view(2, 4, 5, 5)


@pytest.mark.parametrize("child", ["conv", "bn"])
def test_forward_hook_on_a_child_runs_and_counts(layer, child):
    expected = plain(layer)
    seen = []
    getattr(layer, child).register_forward_hook(lambda m, i, output: seen.append(output.shape) or output * 2)
    getattr(expected, child).register_forward_hook(lambda m, i, output: output * 2)
    for training in (False, True):
        close(layer.train(training)(INPUT), expected.train(training)(INPUT))
    assert len(seen) == 2


def test_hook_removed_fuses_again(layer):
    expected = layer.eval()(INPUT)
    handle = layer.conv.register_forward_pre_hook(lambda m, args: (args[0] * 0,))
    assert not torch.equal(layer(INPUT), expected)
    handle.remove()
    assert torch.equal(layer(INPUT), expected)


def test_backward_hook_on_a_child_runs(layer):
    seen = []
    layer.conv.register_full_backward_hook(lambda m, grad_in, grad_out: seen.append(grad_out[0].shape))
    layer(INPUT).sum().backward()
    assert seen == [(2, 6, 5, 5)]


def test_sync_batch_norm_conversion(layer):
    reference = nn.SyncBatchNorm.convert_sync_batchnorm(plain(layer))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    assert type(converted.bn) is nn.SyncBatchNorm
    residual = torch.randn(2, 6, 5, 5)
    for training in (False, True):
        close(converted.train(training)(INPUT, residual), reference.train(training)(INPUT, residual))
    close(converted.bn.running_var, reference.bn.running_var)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "old_weight_norm"])
def test_parametrised_convolution(layer, kind):
    wrap = nn.utils.weight_norm if kind == "old_weight_norm" else getattr(parametrizations, kind)
    expected = plain(layer).eval()
    layer.eval()
    torch.manual_seed(1)
    wrap(layer.conv)
    torch.manual_seed(1)
    wrap(expected.conv)
    with torch.no_grad():
        for module in (layer, expected):
            for name, parameter in module.conv.named_parameters():
                if name.endswith(("original0", "weight_g", "original")):
                    parameter.mul_(3.0)
    close(layer(INPUT), expected(INPUT))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_script_refuses_children_that_it_would_bypass(layer):
    handle = layer.conv.register_forward_hook(lambda m, i, output: output * 2)
    for module in (layer, nn.Sequential(layer)):
        with pytest.raises(RuntimeError, match="ConvBNReLU2d cannot be scripted: its child 'conv' has hooks"):
            torch.jit.script(module)
    handle.remove()
    close(torch.jit.script(layer.eval())(INPUT), layer(INPUT))
    with pytest.raises(RuntimeError, match="child 'bn'"):
        torch.jit.script(nn.SyncBatchNorm.convert_sync_batchnorm(layer))


def test_own_hooks_leave_the_layer_fused(layer):
    seen = []
    expected = layer.eval()(INPUT)
    layer.register_forward_hook(lambda m, i, output: seen.append(1))
    assert torch.equal(layer(INPUT), expected) and seen == [1]


def test_one_layer_used_twice():
    layer = fast.ConvBNReLU2d(4, 4, 3, padding=1)
    twin = copy.deepcopy(layer)
    reference = plain(layer)
    close(layer(layer(INPUT)), reference(reference(INPUT)), 1e-4)
    assert layer.bn.num_batches_tracked == 2
    close(layer.bn.running_mean, reference.bn.running_mean)
    assert twin.bn.num_batches_tracked == 0
