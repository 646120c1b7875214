"""A fused network computes what the original does, in evaluation and in training."""

import copy

import pytest
import torch
from torch import nn

import cnnfast

from .networks import NETWORKS, images, make

CASES = pytest.mark.parametrize("name", NETWORKS)


def assert_close(actual, wanted, relative=2e-5):
    scale = max(wanted.abs().max().item(), 1e-3)
    torch.testing.assert_close(actual, wanted, rtol=0, atol=relative * scale)


@CASES
def test_fuse_eval_values(name):
    model = make(name).eval()
    fused = cnnfast.fuse(model)
    x = images(name)
    with torch.no_grad():
        assert_close(fused(x), model(x))


@CASES
def test_fuse_training_steps(name):
    """Outputs, gradients and running averages over three optimiser steps."""
    model = make(name).train()
    fused = cnnfast.fuse(copy.deepcopy(model))
    networks = [model, fused]
    optimisers = [torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9) for net in networks]
    for _ in range(3):
        x = images(name, 4)
        outputs = []
        for net, optimiser in zip(networks, optimisers, strict=True):
            optimiser.zero_grad()
            outputs.append(net(x))
            outputs[-1].square().mean().backward()
        assert_close(outputs[1], outputs[0], 1e-4)
        for (key, a), b in zip(model.named_parameters(), fused.parameters(), strict=True):
            largest = max(p.grad.abs().max() for p in model.parameters())
            assert (a.grad - b.grad).abs().max() <= 1e-3 * a.grad.abs().max() + 1e-5 * largest, key
        for optimiser in optimisers:
            optimiser.step()
    for (key, a), b in zip(model.named_buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5, msg=key)


def test_fuse_input_gradient_equals_eager():
    model = make("resnet").eval()
    x = images("resnet")
    wanted, actual = (
        torch.autograd.grad(net(y).square().sum(), y)[0]
        for net, y in ((net, x.clone().requires_grad_()) for net in (model, cnnfast.fuse(model)))
    )
    assert_close(actual, wanted, 1e-4)


def test_fuse_follows_optimizer_step():
    model = make("resnet").eval()
    fused = cnnfast.fuse(model)
    x = images("resnet")
    before = fused(x)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    model(x).sum().backward()
    optimiser.step()
    assert not torch.allclose(fused(x), before)
    assert_close(fused(x), model(x))


def test_fuse_batch_norm_in_eval_stays_frozen():
    model = make("resnet").train()
    fused = cnnfast.fuse(copy.deepcopy(model))
    for net in (model, fused):
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    before = fused.stem[1].running_mean.clone()
    x = images("resnet")
    assert_close(fused(x), model(x))
    assert torch.equal(fused.stem[1].running_mean, before)


def test_fuse_train_and_eval_switch():
    model = make("resnet")
    fused = cnnfast.fuse(copy.deepcopy(model))
    x = images("resnet")
    for mode in (True, False, True):
        assert_close(fused.train(mode)(x), model.train(mode)(x), 1e-4)
        assert fused.training is mode and fused.stem[1].training is mode


def test_fuse_dropout_follows_training_flag():
    fused = cnnfast.fuse(ResNetWithDropout())
    x = images("resnet")
    assert torch.equal(fused.eval()(x), fused(x))
    fused.train()
    for module in fused.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(fused(x), fused(x))


def ResNetWithDropout():
    model = make("resnet")
    model.dropout = 0.5
    return model


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_fuse_batch_norm_options(track, affine):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=affine, track_running_stats=track))
    fused = cnnfast.fuse(copy.deepcopy(model))
    x = torch.randn(4, 2, 6, 6)
    for mode in (True, False):
        assert_close(fused.train(mode)(x), model.train(mode)(x), 1e-4)
    assert fused.report()["0"].status == "fused"


def test_fuse_batch_norm_momentum_changed_later():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    fused = cnnfast.fuse(copy.deepcopy(model))
    x = torch.randn(4, 2, 6, 6)
    for net in (model, fused):
        net[1].momentum, net[1].eps = 0.7, 0.3
    assert_close(fused(x), model(x), 1e-4)
    assert_close(fused[1].running_var, model[1].running_var, 1e-4)


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": "same"}, {"padding": "valid", "stride": 2}])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
@pytest.mark.parametrize("kernel", [3, (2, 5)])
def test_fuse_padding(options, mode, kernel):
    model = nn.Sequential(nn.Conv2d(2, 4, kernel, padding_mode=mode, **options), nn.ReLU())
    fused = cnnfast.fuse(model, strict=True)
    x = torch.randn(2, 2, 9, 8)
    assert_close(fused(x), model(x))


def test_fuse_image_without_batch_dimension():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2))
    x = torch.randn(2, 14, 14)
    assert_close(cnnfast.fuse(model, strict=True)(x), model(x))


@pytest.mark.parametrize(
    "shape", [(2, 4, 8, 8), (4, 1, 1), (2, 4, 1, 1), (1, 4, 8, 8), (8, 8), (1,)], ids=str
)
def test_fuse_sum_of_any_shape(shape):
    """A sum that broadcasts is not the residual of a convolution, and comes out right all the same."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.bn = nn.BatchNorm2d(4)
            self.plain = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x, other):
            return torch.relu(self.bn(self.conv(x)) + other), torch.sigmoid(other + self.plain(x))

    model = Net().eval()
    fused = cnnfast.fuse(model, strict=True)
    x, other = torch.randn(2, 3, 8, 8), torch.randn(shape)
    for actual, wanted in zip(fused(x, other), model(x, other), strict=True):
        assert_close(actual, wanted)


def test_fuse_sum_of_other_dtype_promotes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x, other):
            return self.conv(x) + other

    model = Net()
    x, other = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    actual, wanted = cnnfast.fuse(model)(x, other), model(x, other)
    assert actual.dtype == wanted.dtype == torch.float64
    assert_close(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_fuse_other_dtypes(dtype):
    model = make("resnet").eval().to(dtype)
    x = images("resnet").to(dtype)
    actual, wanted = cnnfast.fuse(model)(x), model(x)
    assert actual.dtype == wanted.dtype == dtype
    assert_close(actual, wanted, 1e-12 if dtype == torch.float64 else 0.05)


def test_fuse_autocast_dtype():
    model = make("resnet").eval()
    fused = cnnfast.fuse(model)
    x = images("resnet")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        actual, wanted = fused(x), model(x)
    assert actual.dtype == wanted.dtype
    assert_close(actual.float(), wanted.float(), 0.05)


def test_fuse_in_distributed_data_parallel():
    """Wrapped after fusing; one process, so the averaged gradients are the plain ones."""
    model = make("resnet").train()
    twin = copy.deepcopy(model)
    x = images("resnet")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        nn.parallel.DistributedDataParallel(cnnfast.fuse(model))(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    twin(x).square().sum().backward()
    largest = max(p.grad.abs().max() for p in twin.parameters())
    for (key, a), b in zip(twin.named_parameters(), model.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() <= 1e-4 * largest, key


def test_fuse_empty_batch():
    model = make("lenet")
    assert cnnfast.fuse(model)(torch.randn(0, 1, 28, 28)).shape == (0, 10)


def test_fuse_inference_mode():
    model = make("resnet").eval()
    fused = cnnfast.fuse(model)
    x = images("resnet")
    with torch.inference_mode():
        actual = fused(x)
    assert_close(actual.clone(), model(x).detach())
