"""Every network of the notes, plain and of cnnfast: all layers fused, values and training steps as eager."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from zoo.smooth import Smooth, smooth_twin

import cnnfast

from .plain_networks import HEAVY, PLAIN, make_ours, make_plain, plain_images
from .test_fuse_values import assert_close

RUNS_AS = {
    "lenet": {"conv2d": 2, "avg_pool2d": 2, "linear": 3},
    "alexnet": {"conv2d": 5, "max_pool2d": 3, "linear": 2},
    "alexnet_paper": {"conv2d": 5, "local_response_norm": 2, "max_pool2d": 3, "linear": 3},
    "vgg11": {"conv2d": 8, "max_pool2d": 5, "linear": 3},
    "vgg11_small": {"conv2d": 8, "max_pool2d": 5, "linear": 3},
    "nin": {"conv2d": 12, "max_pool2d": 3, "global_avg_pool2d": 1},
    "nin_single_1x1": {"conv2d": 8, "max_pool2d": 3, "global_avg_pool2d": 1},
    "googlenet": {"conv2d": 3, "max_pool2d": 4, "inception": 9, "global_avg_pool2d": 1, "linear": 1},
    "inception_net": {"conv2d": 2, "max_pool2d": 2, "inception": 2, "linear": 1},
    "residual_net": {"conv2d": 6, "max_pool2d": 2, "linear": 1},
    "resnet18": {"conv2d_bn_act": 17, "conv2d": 3, "max_pool2d": 1, "global_avg_pool2d": 1, "linear": 1},
    "resnet18_preact": {
        "bn_act_conv2d": 10,
        "conv2d": 7,
        "conv2d_bn_act": 3,
        "batch_norm2d": 4,
        "max_pool2d": 1,
        "global_avg_pool2d": 1,
        "linear": 1,
    },
    "densenet": {
        "conv2d_bn_act": 1,
        "dense_block": 4,
        "bn_act_conv2d": 3,
        "batch_norm2d": 1,
        "max_pool2d": 1,
        "avg_pool2d": 3,
        "global_avg_pool2d": 1,
        "linear": 1,
    },
}
TRAINED = [name for name in PLAIN if name not in (*HEAVY, "nin_single_1x1")]


@pytest.mark.parametrize("name", PLAIN)
def test_fuse_plain_network(name):
    model, x = make_plain(name).eval(), plain_images(name)
    fused = cnnfast.fuse(model, x, verify=True, strict=True)
    with torch.no_grad():
        assert_close(fused(x), model(x), 5e-5)
    report = fused.report()
    operators = Counter(row.runs_as.split(":")[0] for row in report.rows if ":" in row.runs_as)
    assert operators == {f"cnnfast.ops.{key}": count for key, count in RUNS_AS[name].items()}
    assert report.coverage.layers == report.coverage.multiply_adds == 1.0
    assert list(fused.state_dict()) == list(model.state_dict())
    assert type(fused.unfuse()) is type(model)


@pytest.mark.parametrize("name", PLAIN)
def test_fuse_network_of_cnnfast(name):
    """Nothing is left to fuse, and nothing changes."""
    model, x = make_ours(name).eval(), plain_images(name)
    fused = cnnfast.fuse(model, x, strict=True)
    assert torch.equal(fused(x), model(x))
    assert {row.status for row in fused.report().rows} <= {"already fused", "no work"}
    assert fused.report().coverage.layers == 1.0


@pytest.mark.parametrize("name", ["googlenet", "densenet", "resnet18_preact", "lenet"])
def test_fuse_counts_the_same_multiply_adds_in_blocks(name):
    x = plain_images(name)
    totals = [
        sum(row.macs or 0 for row in cnnfast.fuse(model, x).report().rows)
        for model in (make_plain(name), cnnfast.models.get_model(name))
    ]
    assert totals[0] == totals[1] > 0


def steps(networks, x, count=2):
    """Training steps side by side; outputs, then gradients of the last step by parameter."""
    optimisers = [torch.optim.SGD(net.parameters(), lr=0.01) for net in networks]
    for _ in range(count):
        outputs = []
        for net, optimiser in zip(networks, optimisers, strict=True):
            optimiser.zero_grad()
            torch.manual_seed(1)  # for dropout
            outputs.append(net(x))
            outputs[-1].square().mean().backward()
        yield outputs
        for optimiser in optimisers:
            optimiser.step()


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("name", TRAINED)
def test_fuse_plain_network_trains(name):
    model = without_dropout(make_plain(name)).double().train()
    fused = cnnfast.fuse(copy.deepcopy(model), strict=True)
    x = plain_images(name, 3).double()
    for actual, wanted in ((b, a) for a, b in steps([model, fused], x)):
        assert_close(actual, wanted, 1e-9)
        largest = max(p.grad.abs().max() for p in model.parameters())
        for (key, a), b in zip(model.named_parameters(), fused.parameters(), strict=True):
            assert (a.grad - b.grad).abs().max() <= 1e-8 * largest, key
    for (key, a), b in zip(model.named_buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", ["googlenet", "densenet", "resnet18_preact", "inception_net"])
def test_fuse_plain_network_trains_in_float32(name):
    """On the kernels. One ReLU that rounding turns on or off moves gradients by far more than rounding does,
    so they are compared in a network without kinks."""
    model = make_plain(name).train()
    x = plain_images(name, 4)
    with torch.no_grad():
        assert_close(cnnfast.fuse(copy.deepcopy(model))(x), copy.deepcopy(model)(x), 1e-3)
    model = smooth_twin(model)
    with Smooth():
        fused = cnnfast.fuse(copy.deepcopy(model))
        for actual, wanted in ((b, a) for a, b in steps([model, fused], x, count=1)):
            assert_close(actual, wanted, 1e-4)
    largest = max(p.grad.abs().max() for p in model.parameters())
    for (key, a), b in zip(model.named_parameters(), fused.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() <= 2e-4 * largest, key


@pytest.mark.parametrize("name", ["googlenet", "densenet", "resnet18_preact", "alexnet_paper"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_fuse_plain_network_scripts(name):
    fused = cnnfast.fuse(make_plain(name)).eval()
    x = plain_images(name)
    with torch.no_grad():
        assert_close(torch.jit.script(fused)(x), fused(x), 1e-5)
