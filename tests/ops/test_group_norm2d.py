"""group_norm2d and instance_norm2d against eager PyTorch in float64: values, gradients, running averages."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnfast import ops, reference

from .support import LAYOUTS, allocations, assert_near, doubles, gradients, in_layout, needs_extension, poison

# Every kind of gradient: from the output, and by computing what the activation was given again.
ACTIVATIONS = (
    "none", "relu", "sigmoid", "leaky_relu(0.2)", "leaky_relu(-0.5)", "hardtanh(-0.7, 1.2)", "hardsigmoid",
    "hardswish", "silu", "tanh", "gelu", "gelu_tanh", "elu(1.5)", "elu(-0.5)", "mish",
)  # fmt: skip
KINKS = {"relu": (0,), "hardtanh(-0.7, 1.2)": (-0.7, 1.2), "hardsigmoid": (-3, 3), "hardswish": (-3, 3)}


def tensors_of(shape, affine=True):
    channels = shape[1]
    parameters = (torch.rand(channels) + 0.5, torch.randn(channels)) if affine else (None, None)
    tensors = (torch.randn(shape) * 2 + 0.5, *parameters)
    return [None if t is None else t.requires_grad_() for t in tensors]


def check(tensors, groups, activation="none", eps=1e-5, cotangent=None):
    exact = doubles(tensors)
    poison(tensors[0].shape, tensors[0].shape)
    output = ops.group_norm2d(tensors[0], groups, *tensors[1:], eps, activation)
    before = reference.group_norm2d(exact[0], groups, *exact[1:], eps)
    truth = reference.group_norm2d(exact[0], groups, *exact[1:], eps, activation)
    assert output.dtype == tensors[0].dtype
    assert_near(output, truth, 2e-5)
    cotangent = torch.randn(truth.shape) if cotangent is None else cotangent
    kinks = KINKS.get(activation, (0,) if activation.startswith(("leaky", "elu")) else ())
    for kink in kinks:  # stay clear of those that rounding could cross
        cotangent = cotangent * ((before.detach() - kink).abs() > 1e-4)
    poison(tensors[0].shape, tensors[0].shape)
    found, expected = gradients(output, cotangent, tensors), gradients(truth, cotangent, exact)
    for own, true in zip(found, expected, strict=True):
        assert (own is None) == (true is None)
        if own is not None:
            assert own.dtype == torch.float32
            assert_near(own, true, 3e-5)


@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("channels, groups", [(1, 1), (6, 3), (7, 7), (12, 1), (32, 8), (33, 11), (96, 2)])
@pytest.mark.parametrize("size", [(5, 6), (1, 3), (20, 17)], ids=str)
def test_group_norm2d(size, channels, groups, affine):
    check(tensors_of((3, channels, *size), affine), groups, "relu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("images", [1, 2, 9])
def test_group_norm2d_activation(images, activation):
    check(tensors_of((images, 36, 7, 5)), 6, activation)


@needs_extension
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_of_far_values(activation):
    """Where exponentials overflow or vanish, and at NaN and infinity, it is what eager PyTorch has."""
    wide = torch.tensor([-200, -90, -30, -10, -5, -1e-3, -1e-20, 0.5, 1e-3, 5, 10, 30, 90, 200.0])
    x = wide.view(1, 1, 2, 7).clone().requires_grad_()
    mean, var = torch.zeros(1, 1), torch.ones(1, 1)
    options = (1, None, None, 0.0, activation, [True, False, False])
    grad = torch.full_like(x, 1.5)
    # The two means that normalisation takes away are the same for all values, and so are left out.
    found = torch.ops.cnnfast.group_norm2d_backward(grad, x.detach(), mean, var, *options)[0]
    exact = x.detach().double().requires_grad_()
    (slope,) = torch.autograd.grad(reference.activation.activate(exact, activation), exact, grad.double())
    normal = exact.detach()
    truth = slope - slope.mean() - normal * (slope * normal).mean()
    assert_near(found, truth, 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (3, 2, 4, 4), (5, 8, 1, 1), (1, 18, 4, 1)], ids=str)
def test_group_norm2d_layout(shape, layout):
    tensors = tensors_of(shape)
    tensors[0] = in_layout(tensors[0], layout).requires_grad_()
    check(tensors, 2, "silu", cotangent=in_layout(torch.randn(shape), layout))


@pytest.mark.parametrize("wanted", list(itertools.product((False, True), repeat=3))[1:], ids=str)
def test_group_norm2d_gradients_only_where_wanted(wanted):
    tensors = tensors_of((2, 6, 5, 7))
    for tensor, flag in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(flag)
    check(tensors, 3, "gelu", eps=0.3)


@needs_extension
@pytest.mark.parametrize("mean", [10, 100, 1000])
def test_group_norm2d_of_values_far_from_zero(mean):
    """PyTorch's own errs by more than a hundred times as much in channels_last memory."""
    x = torch.randn(2, 32, 40, 40) + mean
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn(x.shape)
    exact = x.detach().double().requires_grad_()
    truth, output = F.group_norm(exact, 8), ops.group_norm2d(x, 8)
    assert_near(output, truth, 5e-8 * mean)
    (found,), (true,) = torch.autograd.grad(output, x, grad), torch.autograd.grad(truth, exact, grad.double())
    assert_near(found, true, 1e-7 * mean)


def test_group_norm2d_of_constant_images():
    x = torch.full((2, 4, 9, 9), 3.7).requires_grad_()
    output = ops.group_norm2d(x, 2, None, torch.arange(4.0), activation="relu")
    expected = torch.arange(4.0).view(4, 1, 1).expand(2, 4, 9, 9)
    torch.testing.assert_close(output, expected, rtol=0, atol=2e-4)
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert grad.isfinite().all()


def test_group_norm2d_keeps_nan_within_its_group():
    x = torch.randn(2, 4, 6, 6)
    x[0, 1, 2, 2] = float("nan")
    output = ops.group_norm2d(x, 2, activation="relu")
    assert output[0, :2].isnan().all() and not output[0, 2:].isnan().any() and not output[1].isnan().any()


@needs_extension
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("mixed", [False, True], ids=["narrow", "float_weights"])
def test_group_norm2d_bfloat16(activation, mixed):
    x, weight, bias = (t.detach() for t in tensors_of((3, 48, 17, 13)))
    kinds = (torch.bfloat16, torch.float32 if mixed else torch.bfloat16)
    tensors = [t.to(kinds[i > 0]).requires_grad_() for i, t in enumerate((x, weight, bias))]
    exact = doubles(tensors)
    output = ops.group_norm2d(tensors[0], 8, *tensors[1:], activation=activation)
    truth = reference.group_norm2d(exact[0], 8, *exact[1:], activation=activation)
    assert output.dtype == torch.bfloat16
    assert_near(output, truth, 4e-3)
    cotangent = torch.randn(truth.shape).bfloat16()
    if activation == "relu":
        cotangent = cotangent * (truth.detach().abs() > 1e-4)
    found, expected = gradients(output, cotangent, tensors), gradients(truth, cotangent, exact)
    for own, true, tensor in zip(found, expected, tensors, strict=True):
        assert own.dtype == tensor.dtype
        assert_near(own, true, 4e-3)


def test_group_norm2d_gradcheck():
    tensors = [t.detach().double().requires_grad_() for t in tensors_of((2, 4, 3, 3))]
    assert torch.autograd.gradcheck(
        lambda x, w, b: ops.group_norm2d(x, 2, w, b, activation="silu"), tensors, fast_mode=True
    )


@needs_extension
def test_group_norm2d_keeps_its_input_alone():
    x = torch.randn(4, 16, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    with allocations() as record:
        output = ops.group_norm2d(x, 4, activation="silu")
    images = [size for size in record.sizes if size >= x.numel() * 4]
    assert len(images) == 1, "the output"
    with allocations() as record:
        output.backward(torch.ones_like(output))
    images = [size for size in record.sizes if size >= x.numel() * 4]
    assert len(images) <= 2, "the gradients of output and input"


@pytest.mark.parametrize("images", [0, 1, 3])
def test_group_norm2d_of_few_images_or_none(images):
    tensors = tensors_of((images, 6, 4, 5))
    output = ops.group_norm2d(tensors[0], 3, *tensors[1:], activation="relu")
    assert output.shape == (images, 6, 4, 5)
    found = torch.autograd.grad(output.sum(), tensors)
    assert [t.shape for t in found] == [t.shape for t in tensors]
    if images == 0:
        assert not any(t.any() for t in found)


def test_group_norm2d_of_one_value_raises_as_pytorch_does():
    for call in (ops.group_norm2d, F.group_norm):
        with pytest.raises(ValueError, match="more than 1 value"):
            call(torch.randn(1, 3, 1, 1), 3)
    assert ops.group_norm2d(torch.randn(2, 3, 1, 1), 3).abs().max() < 1e-4


# --- instance_norm2d


@pytest.mark.parametrize("own", [False, True], ids=["averages", "own"])
@pytest.mark.parametrize("tracked", [False, True], ids=["alone", "tracked"])
@pytest.mark.parametrize("images", [1, 3])
def test_instance_norm2d_as_the_module(images, own, tracked):
    if not own and not tracked:
        pytest.skip("there is nothing to normalise by")
    norm = nn.InstanceNorm2d(6, momentum=0.3, affine=True, track_running_stats=tracked).train(own)
    if tracked:
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    same, x = copy.deepcopy(norm).double(), torch.randn(images, 6, 7, 5) * 3 + 1
    inputs = x.clone().requires_grad_(), x.double().requires_grad_()
    output = ops.instance_norm2d(
        inputs[0], norm.running_mean, norm.running_var, norm.weight, norm.bias, own, 0.3, activation="tanh"
    )
    truth = same(inputs[1]).tanh()
    assert_near(output, truth, 2e-5)
    grad = torch.randn(x.shape)
    for a, b in zip(
        torch.autograd.grad(output, (inputs[0], norm.weight, norm.bias), grad),
        torch.autograd.grad(truth, (inputs[1], same.weight, same.bias), grad.double()),
        strict=True,
    ):
        assert_near(a, b, 3e-5)
    for name, buffer in norm.named_buffers():
        torch.testing.assert_close(buffer.double(), same.get_buffer(name).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("averages", [(None, None), (torch.zeros(3), None), (None, torch.ones(3))], ids=str)
def test_instance_norm2d_by_averages_that_are_missing_raises_as_pytorch_does(averages):
    for call in (ops.instance_norm2d, F.instance_norm):
        with pytest.raises(RuntimeError, match="running_mean"):
            call(torch.randn(2, 3, 4, 4), *averages, use_input_stats=False)


def test_instance_norm2d_of_one_pixel_raises_as_pytorch_does():
    averages = torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match="spatial element"):
        ops.instance_norm2d(torch.randn(4, 3, 1, 1), *averages)
    assert not averages[0].any() and (averages[1] == 1).all()
