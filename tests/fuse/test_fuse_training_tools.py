"""Fused networks with what training code has around a step: clipping, accumulation, scaling of the loss,
checkpointing, averages of weights, frozen layers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import cnnfast
from cnnfast import _ext

needs_extension = pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")


class Joined(nn.Module):
    """Two branches over one input, concatenated."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.ReLU())
        self.right = nn.Sequential(
            nn.Conv2d(inputs, 4, 1), nn.ReLU(), nn.Conv2d(4, outputs, 3, padding=1), nn.ReLU()
        )

    def forward(self, x):
        return torch.cat((self.left(x), self.right(x)), 1)


def plain():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Joined(8, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(10, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    ).train()


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(6, 2, 12, 14, generator=generator), torch.randint(4, (6,), generator=generator))
        for _ in range(count)
    ]


def loss_of(net, batch):
    images, labels = batch
    return F.cross_entropy(net(images), labels)


def assert_same(fused, model, relative=1e-4):
    for (name, own), true in zip(fused.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own, true, rtol=relative, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for own, true in zip(fused.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(own, true, rtol=1e-4, atol=1e-5)


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "sgd_fused": lambda parameters: torch.optim.SGD(parameters, lr=0.1, fused=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, eps=1e-2),
    "adam_fused": lambda parameters: torch.optim.Adam(parameters, lr=0.01, eps=1e-2, fused=True),
}


def train(net, optimizer, accumulate=1, clip=None):
    for step in batches(3 * accumulate), batches(2 * accumulate, seed=1):
        for number, batch in enumerate(step):
            (loss_of(net, batch) / accumulate).backward()
            if (number + 1) % accumulate:
                continue
            if clip is not None:
                norm = nn.utils.clip_grad_norm_(net.parameters(), clip)
                assert norm > clip  # else it would not be tested
            optimizer.step()
            optimizer.zero_grad(set_to_none=number % 2 == 0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fused_network_trains_like_the_plain_one(optimizer):
    model = plain()
    fused = cnnfast.fuse(copy.deepcopy(model))
    for net in (model, fused):
        train(net, OPTIMIZERS[optimizer](net.parameters()))
    assert_same(fused, model)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_clipping_and_accumulation(accumulate):
    model = plain()
    fused = cnnfast.fuse(copy.deepcopy(model))
    for net in (model, fused):
        train(net, OPTIMIZERS["sgd"](net.parameters()), accumulate, clip=0.05)
    assert_same(fused, model)


def test_scaled_loss():
    """A power of two as the scale leaves gradients as they are, and infinite ones skip the step."""
    net = cnnfast.fuse(plain())
    loss_of(net, batches(1)[0]).backward()
    expected = [p.grad.clone() for p in net.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.zero_grad()
    scaler.scale(loss_of(net, batches(1)[0])).backward()
    scaler.unscale_(optimizer)
    for own, true in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(own.grad, true, rtol=1e-6, atol=1e-9)
    scaler.step(optimizer)
    scaler.update()
    before = [p.clone() for p in net.parameters()]
    optimizer.zero_grad()
    scaler.scale(loss_of(net, batches(1)[0]) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0 and all(map(torch.equal, net.parameters(), before))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_around_fused_layers(reentrant):
    """Gradients are the same; statistics count twice, as plain layers' do."""
    model = plain()
    fused = cnnfast.fuse(copy.deepcopy(model))
    images, labels = batches(1)[0]
    for net in (model, fused):
        leaf = images.clone().requires_grad_()
        F.cross_entropy(checkpoint(net, leaf, use_reentrant=reentrant), labels).backward()
    for own, true in zip(fused.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own.grad, true.grad, rtol=1e-4, atol=1e-6)
    tracked = [b for n, b in fused.named_buffers() if n.endswith("num_batches_tracked")]
    assert [int(b) for b in tracked] == [2]
    assert_same(fused, model)


def test_average_of_weights():
    """An average of a fused network computes with its own weights, packed anew at every change."""
    net = cnnfast.fuse(plain())
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    images = batches(1, seed=7)[0][0]
    previous = None
    for batch in batches(3):
        loss_of(net, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(net)
        reference = plain()
        reference.load_state_dict(average.module.state_dict())
        with torch.no_grad():
            found = average.eval()(images)
            torch.testing.assert_close(found, reference.eval()(images), rtol=1e-4, atol=1e-5)
        assert previous is None or not torch.allclose(found, previous)
        previous = found


def calls(net, batch):
    """Names of a step's operators, and the bytes that it allocates in all."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        loss_of(net, batch).backward()
    events = profile.profiler.kineto_results.events()
    changes = (event.nbytes() for event in events if event.name() == "[memory]")
    return [event.name for event in profile.events()], sum(change for change in changes if change > 0)


@needs_extension
def test_frozen_layers_cost_nothing():
    """Weights without a gradient: none is computed; a frozen front: nothing runs backward there."""
    net = cnnfast.fuse(plain())
    batch = batches(1)[0]
    calls(net, batch)
    net.zero_grad()
    _, whole = calls(net, batch)
    net.zero_grad()
    frozen = net.get_parameter("5.weight").requires_grad_(False)
    partly, less = calls(net, batch)
    assert less <= whole - frozen.numel() * frozen.element_size()
    assert partly.count("cnnfast::inception_backward") == 1
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith("9."))
    net.zero_grad()
    head, _ = calls(net, batch)
    assert not [name for name in head if "_backward" in name and "conv" in name or "inception_b" in name]
    assert [n for n, p in net.named_parameters() if p.grad is not None] == ["9.weight", "9.bias"]


def test_partly_frozen_network_trains_like_the_plain_one():
    model = plain()
    for name in ("0.weight", "3.left.0.weight", "3.right.2.bias", "5.bias"):
        model.get_parameter(name).requires_grad_(False)
    fused = cnnfast.fuse(copy.deepcopy(model))
    for net in (model, fused):
        wanted = [p for p in net.parameters() if p.requires_grad]
        train(net, torch.optim.SGD(wanted, lr=0.1))
    assert_same(fused, model)
