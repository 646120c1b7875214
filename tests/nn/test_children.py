"""Children that a fused layer must not bypass: hooks, SyncBatchNorm, parametrisations; and those it may."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import cnnfast.nn as fast
from cnnfast.benchmarking.plain.inception import Inception as PlainInception

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


BLOCKS = {
    "inception": lambda: fast.Inception(4, 5, (3, 7), (2, 4), 3),
    "inception_a": lambda: fast.InceptionA(4),
    "dense_block": lambda: fast.DenseBlock(3, 4, 5),
    "batch_norm": lambda: fast.BatchNormAct2d(4),
    "bn_act_conv": lambda: fast.BNActConv2d(4, 6, 3, padding=1),
    "linear_bn": lambda: nn.Sequential(nn.Flatten(), fast.LinearBNAct(100, 7)),
    "preact": lambda: fast.PreActResidual(4, 6, use_1x1conv=True, stride=2),
}
LEAVES = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, fast.BNActConv2d)


@pytest.fixture(params=BLOCKS)
def block(request):
    made = BLOCKS[request.param]()
    made(torch.randn(4, 4, 5, 5))
    return made


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_hooks_on_each_child_of_a_block_run(block, training):
    """One at a time: the others are bypassed or called with the same result."""
    block.train(training)
    expected = copy.deepcopy(block)(INPUT)
    for name, child in list(block.named_modules()):
        if name == "" or not isinstance(child, LEAVES):
            continue
        seen = []
        hooked = copy.deepcopy(block)
        hooked.get_submodule(name).register_forward_hook(lambda m, i, output: seen.append(output))  # noqa: B023
        close(hooked(INPUT), expected)
        assert len(seen) == 1, name
        hooked.get_submodule(name).register_forward_hook(lambda m, i, output: output * 0 - 3)
        assert not torch.allclose(hooked(INPUT), expected), name


def test_children_of_blocks_replaced_by_others_of_the_same_kind():
    """A dilated convolution, a larger pool: nothing that was written down at the start holds any more."""
    block = fast.Inception(4, 5, (3, 7), (2, 4), 3)
    plain = PlainInception(4, 5, (3, 7), (2, 4), 3)
    for module in (block, plain):
        module.p2_2 = nn.Conv2d(3, 7, 3, padding=2, dilation=2)
        module.p4_1 = nn.MaxPool2d(5, 1, 2)
    plain.load_state_dict(block.state_dict())
    close(block(INPUT), plain(INPUT))
    for layer in (fast.ConvReLU2d(4, 6, 3), fast.ConvBNReLU2d(4, 6, 3), fast.BNActConv2d(4, 6, 3)):
        layer.conv = nn.Conv2d(4, 6, 3, padding="same")
        assert layer(INPUT).shape == (2, 6, 5, 5)
    dense = fast.DenseBlock(2, 4, 5)
    dense.layers[1].conv = nn.Conv2d(9, 5, 5, padding=2, groups=1)
    assert dense(INPUT).shape == (2, 14, 5, 5)
    grouped = fast.DenseBlock(2, 4, 4)
    grouped.layers[1] = fast.BNActConv2d(8, 4, 3, padding=1, groups=2, activation="sigmoid")
    x = torch.cat([INPUT, grouped.layers[0](INPUT)], dim=1)
    close(grouped(INPUT), torch.cat([x, grouped.layers[1](x)], dim=1))


def test_sync_batch_norm_conversion_of_blocks(block):
    for training in (False, True):
        expected = copy.deepcopy(block).train(training)(INPUT)
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(block)).train(training)
        assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in converted.modules())
        close(converted(INPUT), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_script_refuses_blocks_with_children_that_it_would_bypass(block):
    for child in list(block.modules()):
        bypassed = not isinstance(child, fast.BNActConv2d) or isinstance(block, fast.DenseBlock)
        if child is not block and isinstance(child, LEAVES) and bypassed:
            handle = child.register_forward_hook(lambda m, i, output: output * 2)
            with pytest.raises(RuntimeError, match="cannot be scripted: its .* has hooks"):
                torch.jit.script(block)
            handle.remove()
    torch.jit.script(block)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_script_refuses_blocks_with_other_settings():
    inception = fast.InceptionA(4)
    inception.pool.count_include_pad = False
    dense = fast.DenseBlock(2, 4, 5)
    dense.layers[0].conv = nn.Conv2d(4, 5, 3, padding=2, dilation=2)
    sigmoid = fast.DenseBlock(2, 4, 5)
    sigmoid.layers[0] = fast.BNActConv2d(4, 5, 3, padding=1, activation="sigmoid")
    padded = fast.ConvReLU2d(4, 6, 3)
    padded.conv.padding = (1, 1)
    for module in (inception, dense, sigmoid, padded):
        with pytest.raises(RuntimeError, match="cannot be scripted"):
            torch.jit.script(module)


def test_parametrised_convolution_of_a_block():
    block = fast.DenseBlock(2, 4, 5).eval()
    expected = block(INPUT)
    parametrizations.weight_norm(block.layers[1].conv)
    close(block(INPUT), expected)
    with torch.no_grad():
        block.layers[1].conv.parametrizations.weight.original0.mul_(3.0)
    assert not torch.allclose(block(INPUT), expected)
