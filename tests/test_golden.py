"""Every network against the golden values and gradients of the notes' networks."""

import os
import subprocess
import sys
from pathlib import Path

import fill
import pytest
import torch
from torch.nn import functional as F

import cnnfast
from cnnfast import _ext
from cnnfast.benchmarking.plain import get_plain
from cnnfast.models.checkpoint import plain_key_map

# Filling their parameters takes longer than all the others together, so the second process leaves them out.
LARGE = {"alexnet", "alexnet_paper", "vgg11"}
NAMES = [name for name in cnnfast.models.list_models() if _ext.AVAILABLE or name not in LARGE]
LABELS = torch.tensor([3, 7, 1])
# Rounding resnet18's parameters to float32 puts one value on the other side of a ReLU's kink, and that alone
# moves gradients by 6e-4; float32 arithmetic in another order moves more values. With the ReLUs' decisions
# held they are compared closely, in test_resnet18_gradients_with_its_own_relu_decisions. So it is with
# googlenet: eager PyTorch is 2e-5 off in NCHW memory and 1.8e-3 in channels_last, and so are we.
NORM_TOLERANCE = {"resnet18": 1e-2, "googlenet": 4e-3}


def plain_checkpoint(case):
    """The case's parameters under the notes' keys."""
    return {
        key: torch.from_numpy(
            fill.tensor_values(i, key.rsplit(".", 1)[-1], tuple(shape), case["gain"])
        ).float()
        for i, (key, shape) in enumerate(case["entries"])
    }


def inputs(case):
    return torch.from_numpy(fill.input_values(tuple(case["input_shape"]))).float()


def without_dropout(net):
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return net


@pytest.fixture(scope="module", params=NAMES)
def built(request, golden):
    """One network at a time, with its case and the checkpoint."""
    case = golden[request.param]
    case = {**case, "norm_tolerance": NORM_TOLERANCE.get(request.param, 1e-3)}
    return cnnfast.models.get_model(request.param), case, plain_checkpoint(case)


@pytest.fixture
def net_and_case(built):
    """The network as the checkpoint has it."""
    net, case, checkpoint = built
    net.zero_grad()
    return cnnfast.models.load_plain_state_dict(net, checkpoint), case


def test_golden_covers_every_network(golden):
    assert set(cnnfast.models.list_models()) == set(golden)


def test_golden_parameter_count(net_and_case):
    net, case = net_and_case
    assert sum(p.numel() for p in net.parameters()) == case["num_parameters"]


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)
def test_golden_logits(net_and_case, layout):
    net, case = net_and_case
    with torch.no_grad():
        logits = net.eval()(inputs(case).contiguous(memory_format=layout))[:, :10].double()
    expected = torch.tensor(case["logits"], dtype=torch.float64)
    tolerance = 1e-4 if _ext.AVAILABLE else 2e-5  # Winograd convolutions; direct ones
    assert (logits - expected).abs().max() <= tolerance * case["logits_absmax"]


@pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")
def test_golden_bfloat16_logits(net_and_case):
    """Frozen in bfloat16: at most twice the error of eager PyTorch under autocast."""
    net, case = net_and_case
    frozen = cnnfast.freeze(net, inputs(case), dtype=torch.bfloat16, strict=True)
    logits = frozen(inputs(case))[:, :10].double()
    expected = torch.tensor(case["logits"], dtype=torch.float64)
    assert (logits - expected).abs().max() <= 2 * case["eager_bf16_error"]


def test_golden_training_step(net_and_case):
    net, case = net_and_case
    without_dropout(net).train()
    loss = F.cross_entropy(net(inputs(case)), LABELS)
    loss.backward()
    assert loss.item() == pytest.approx(case["train_loss"], rel=2e-5)
    own_keys = plain_key_map(net, [key for key, _ in case["entries"]])
    _check_gradients(net, case, own_keys, case["norm_tolerance"])
    _check_running_averages(net, case, own_keys)


def _check_gradients(net, case, own_keys, tolerance):
    gradients = {key: parameter.grad.double() for key, parameter in net.named_parameters()}
    largest = max(case["grad_norms"].values())
    plain_keys = [key for key in own_keys if own_keys[key] in gradients]
    assert sorted(plain_keys) == sorted(case["grad_norms"])
    for j, key in enumerate(plain_keys):
        gradient, norm = gradients[own_keys[key]], case["grad_norms"][key]
        direction = torch.from_numpy(fill.uniform(3_000_000 + j, gradient.numel()))
        dot = torch.dot(gradient.flatten(), direction).item()
        # A bias in front of a batch norm has no gradient: eager PyTorch leaves 2e-6 of the largest.
        floor = (1e-6 if _ext.AVAILABLE else 1e-5) * largest
        assert abs(gradient.norm().item() - norm) <= max(tolerance * norm, floor), key
        assert abs(dot - case["grad_dots"][key]) <= max(2 * tolerance * norm, floor), key


def _check_running_averages(net, case, own_keys):
    state = net.state_dict()
    for key, norm in case.get("running_norms_after_one_step", {}).items():
        assert state[own_keys[key]].double().norm().item() == pytest.approx(norm, rel=1e-4), key


class Decided(torch.nn.Module):
    """A ReLU that lets through what another network's ReLU did."""

    def __init__(self, masks):
        super().__init__()
        self.masks = masks

    def forward(self, x):
        mask, own = next(self.masks), x > 0
        assert (mask != own).sum() <= 20 and x.detach()[mask != own].abs().sum() <= 1e-4  # rounding alone
        return x * mask


def test_resnet18_gradients_with_its_own_relu_decisions(golden):
    checkpoint = plain_checkpoint(golden["resnet18"])
    net = cnnfast.models.load_plain_state_dict(cnnfast.models.get_model("resnet18"), checkpoint).train()
    masks = []
    for layer in net.modules():
        if getattr(layer, "activation", "none") == "relu":
            layer.register_forward_hook(lambda layer, args, output: masks.append(output.detach() > 0))
    F.cross_entropy(net(inputs(golden["resnet18"])), LABELS).backward()

    twin = get_plain("resnet18")
    twin.load_state_dict(checkpoint, strict=False)
    twin.double().train()
    given = iter(masks)
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU):
                setattr(module, name, Decided(given))
    F.cross_entropy(twin(inputs(golden["resnet18"]).double()), LABELS).backward()
    own_keys = plain_key_map(net, list(checkpoint))
    gradients = {key: parameter.grad.double() for key, parameter in net.named_parameters()}
    largest = max(p.grad.norm() for p in twin.parameters())
    for key, parameter in twin.named_parameters():
        error = (gradients[own_keys[key]] - parameter.grad).norm()
        assert error <= max(2e-4 * parameter.grad.norm(), 1e-6 * largest), key


@pytest.mark.skipif(not _ext.AVAILABLE, reason="this run uses the reference operators already")
def test_golden_with_reference_operators():
    """The fallback gives the same answers: this file again, in a process without the extension."""
    environment = {**os.environ, "CNNFAST_REFERENCE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(Path(__file__)), "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
