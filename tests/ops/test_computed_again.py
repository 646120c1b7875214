"""Activations whose gradient their output does not tell: norms on the CPU compute their argument again."""

import pytest
import torch
from torch import nn

import cnnfast

from .support import allocations, assert_near, needs_extension

pytestmark = needs_extension
NAMES = ("silu", "gelu", "gelu_tanh", "hardswish", "mish", "leaky_relu(-0.5)", "elu(-0.5)")
KINKS = {"hardswish": (-3, 3), "leaky_relu(-0.5)": (0,), "elu(-0.5)": (0,)}
EACH = pytest.mark.parametrize("name", NAMES)


def _saved(run):
    """Numbers of values of the tensors that a call keeps for its gradient."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        run()
    return kept


def _arguments():
    x = torch.randn(4, 3, 9, 8).contiguous(memory_format=torch.channels_last)
    weight, gain, shift = torch.randn(6, 3, 3, 3), torch.rand(6) + 0.5, torch.randn(6)
    return [t.requires_grad_() for t in (x, weight, gain, shift)]


@EACH
def test_convolution_and_norm_keep_the_convolution_alone(name):
    x, weight, gain, shift = _arguments()
    kept = _saved(
        lambda: torch.ops.cnnfast.conv2d_batch_norm(
            x, weight, None, gain, shift, None, padding=[1, 1], activation=name
        )
    )
    assert kept.count(4 * 6 * 9 * 8) == 1


@EACH
def test_norms_keep_their_input_alone(name):
    x = torch.randn(4, 6, 9, 8).requires_grad_()
    gain = (torch.rand(6) + 0.5).requires_grad_()
    statistics = torch.randn(6), torch.rand(6) + 0.5
    for run in (
        lambda: torch.ops.cnnfast.batch_norm2d(x, gain, gain, activation=name),
        lambda: torch.ops.cnnfast.batch_norm_act(x, *statistics, gain, gain, activation=name),
    ):
        assert _saved(run).count(x.numel()) == 1


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("parts", ["all", "gain", "none"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "sum"])
def test_gradients_of_convolution_and_norm(name, dtype, parts, residual):
    tensors = _arguments()
    more = torch.randn(4, 6, 9, 8).requires_grad_() if residual else None
    tensors = [t.detach().to(dtype).requires_grad_() for t in (*tensors, *([more] if residual else []))]
    exact = [t.detach().double().requires_grad_() for t in tensors]

    def run(x, weight, gain, shift, more=None, activation=name):
        gain, shift = (gain if parts != "none" else None), (shift if parts == "all" else None)
        operator = cnnfast.ops if x.dtype == dtype else cnnfast.reference
        arguments = (x, weight, None, gain, shift, more)
        return operator.conv2d_batch_norm(*arguments, padding=[1, 1], activation=activation)[0]

    output, truth = run(*tensors), run(*exact)
    limit = {torch.float32: 3e-5, torch.bfloat16: 3e-2, torch.float64: 1e-10}[dtype]
    assert_near(output, truth, limit)
    given = run(*exact, activation="none").detach()
    kinks = sum(((given - kink).abs() < limit) for kink in KINKS.get(name, ()))  # rounding could cross them
    grad = torch.where(torch.as_tensor(kinks) > 0, 0, torch.randn(truth.shape, dtype=torch.float64)).to(dtype)
    found = torch.autograd.grad(output, tensors, grad, allow_unused=True)
    for own, true in zip(
        found, torch.autograd.grad(truth, exact, grad.double(), allow_unused=True), strict=True
    ):
        assert (own is None) == (true is None)
        if own is not None:
            assert_near(own, true, limit)


def test_a_bias_of_another_size_is_refused():
    x = torch.randn(2, 6, 5, 5)
    options = [1e-5, "silu", True, [True, False, False, False, False, False]]
    with pytest.raises(RuntimeError, match=r"batch_norm2d_backward: .*the norm's bias.*not of shape \[5\]"):
        torch.ops.cnnfast.batch_norm2d_backward(
            x, x, x[0, :, 0, 0], x[1, :, 0, 0] ** 2, None, x[0, 0, 0], *options
        )


def test_a_step_with_silu_runs_no_activation_by_itself():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Mish()
    )
    fused = cnnfast.fuse(model.train())
    with allocations() as record:
        fused(torch.randn(2, 3, 12, 12)).sum().backward()
    assert not {name for name in record.operators if "silu" in name or "mish" in name}
