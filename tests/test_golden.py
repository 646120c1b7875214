"""Every network that exists here against the golden values and gradients of the notes' networks."""

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
from cnnfast.models.checkpoint import plain_key_map

NAMES = cnnfast.models.list_models()
LABELS = torch.tensor([3, 7, 1])


def plain_checkpoint(case):
    """The case's parameters under the notes' keys."""
    return {
        key: torch.from_numpy(fill.tensor_values(i, key.rsplit(".", 1)[-1], tuple(shape), case["gain"]))
        for i, (key, shape) in enumerate(case["entries"])
    }


def loaded(name, case):
    net = cnnfast.models.get_model(name)
    return cnnfast.models.load_plain_state_dict(net, plain_checkpoint(case))


def inputs(case):
    return torch.from_numpy(fill.input_values(tuple(case["input_shape"]))).float()


def without_dropout(net):
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return net


@pytest.fixture(params=[name for name in NAMES])
def named_case(request, golden):
    if request.param not in golden:
        pytest.skip(f"{request.param} has no golden entry")
    return request.param, golden[request.param]


def test_golden_covers_every_finished_network(golden):
    assert {"lenet", "residual_net"} <= set(NAMES) & set(golden)


def test_golden_parameter_count(named_case):
    name, case = named_case
    net = cnnfast.models.get_model(name)
    assert sum(p.numel() for p in net.parameters()) == case["num_parameters"]


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)
def test_golden_logits(named_case, layout):
    name, case = named_case
    net = loaded(name, case).eval()
    with torch.no_grad():
        logits = net(inputs(case).contiguous(memory_format=layout))[:, :10].double()
    expected = torch.tensor(case["logits"], dtype=torch.float64)
    assert (logits - expected).abs().max() <= 2e-5 * case["logits_absmax"]


def test_golden_training_step(named_case):
    name, case = named_case
    net = without_dropout(loaded(name, case)).train()
    loss = F.cross_entropy(net(inputs(case)), LABELS)
    loss.backward()
    assert loss.item() == pytest.approx(case["train_loss"], rel=2e-5)
    own_keys = plain_key_map(net, [key for key, _ in case["entries"]])
    _check_gradients(net, case, own_keys)
    _check_running_averages(net, case, own_keys)


def _check_gradients(net, case, own_keys):
    gradients = {key: parameter.grad.double() for key, parameter in net.named_parameters()}
    largest = max(case["grad_norms"].values())
    plain_keys = [key for key in own_keys if own_keys[key] in gradients]
    assert sorted(plain_keys) == sorted(case["grad_norms"])
    for j, key in enumerate(plain_keys):
        gradient, norm = gradients[own_keys[key]], case["grad_norms"][key]
        direction = torch.from_numpy(fill.uniform(3_000_000 + j, gradient.numel()))
        dot = torch.dot(gradient.flatten(), direction).item()
        floor = 1e-6 * largest  # a bias in front of a batch norm has a true gradient of zero
        assert abs(gradient.norm().item() - norm) <= max(1e-3 * norm, floor), key
        assert abs(dot - case["grad_dots"][key]) <= max(2e-3 * norm, floor), key


def _check_running_averages(net, case, own_keys):
    state = net.state_dict()
    for key, norm in case.get("running_norms_after_one_step", {}).items():
        assert state[own_keys[key]].double().norm().item() == pytest.approx(norm, rel=1e-4), key


@pytest.mark.skipif(not _ext.AVAILABLE, reason="this run uses the reference operators already")
def test_golden_with_reference_operators():
    """The fallback gives the same answers: this file again, in a process without the extension."""
    environment = {**os.environ, "CNNFAST_REFERENCE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(Path(__file__)), "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
