"""Memory of large tensors is kept between the steps of a training."""

import os
import subprocess
import sys

import pytest
import torch

_STEPS = """
import resource
import torch
import cnnfast

torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(32, 16, 3, padding=1)
).to(memory_format=torch.channels_last)
net = cnnfast.fuse(net).train()
x = torch.randn(16, 3, 160, 160).contiguous(memory_format=torch.channels_last)  # 52 MB between the layers

gradient = torch.randn(16, 16, 160, 160).contiguous(memory_format=torch.channels_last)

def step():
    net(x).backward(gradient)
    net.zero_grad(set_to_none=True)

def pages(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(3):
    step()
"""


def _run(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", _STEPS + code]
    result = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=300
    )
    return result.stdout


def test_steps_use_the_same_memory_again():
    kept, plain = (
        min(int(_run("print(pages(4))", CNNFAST_KEEP_MEMORY=value)) for _ in range(2)) for value in ("1", "0")
    )
    assert kept < plain / 2


def test_kept_memory_is_given_back():
    code = """
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

with_memory = resident()
torch.ops.cnnfast.clear_caches()
print(with_memory - resident())
step()
"""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("the system has no /proc/self/statm")
    assert int(_run(code)) > 40e6


def test_memory_is_not_shared_by_living_tensors():
    from cnnfast import ops

    x = torch.randn(4, 8, 128, 128)
    weights = [torch.full((8, 8, 1, 1), float(i), requires_grad=True) for i in range(6)]
    outputs = [ops.conv2d(x, w) for w in weights]
    total = x.sum(1, keepdim=True)
    for i, y in enumerate(outputs):
        torch.testing.assert_close(y.detach(), (total * i).expand_as(y), rtol=1e-4, atol=1e-4)
    expected = outputs[3].detach().clone()
    del y, outputs[:3]
    for w in weights:  # the memory of the first three is used again, that of the others is not
        ops.conv2d(x, w * 2)
    torch.testing.assert_close(outputs[0].detach(), expected, rtol=0, atol=0)


def test_results_outlive_the_step_and_change_like_any_tensor():
    from cnnfast import ops

    x = torch.randn(4, 8, 128, 128)
    w = torch.randn(8, 8, 1, 1, requires_grad=True)
    y = ops.conv2d(x, w).detach()
    before = y.clone()
    torch.ops.cnnfast.clear_caches()
    assert torch.equal(y, before)
    y.resize_(2, 8, 256, 256, memory_format=torch.channels_last)
    y.zero_()
    z = torch.empty(0)
    z.set_(y)
    assert torch.equal(z, torch.zeros(2, 8, 256, 256))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_has_memory_of_its_own():
    code = """
import os
pid = os.fork()
if pid == 0:
    step()
    os._exit(0)
step()
print(os.waitpid(pid, 0)[1])
"""
    assert _run(code).strip() == "0"
