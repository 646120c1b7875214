"""Gradients in which pixels of few channels are joined: several of them fill a vector."""

import pytest
import torch
import torch.nn.functional as F

from cnnfast import ops

from .support import assert_near, needs_extension, on_threads

pytestmark = needs_extension

# images, in, out, size, kernel, padding: columns that 2, 3 or no pixels share
INPUTS = {
    "two of eight": (24, 8, 16, (40, 44), 3, 1),
    "two of six": (40, 6, 16, (28, 28), 5, 0),
    "three of five": (40, 5, 12, (30, 33), 3, 1),
    "two of seven, odd columns": (24, 7, 16, (30, 31), 3, 1),
    "eight of two": (24, 2, 16, (24, 24), 3, 2),
    "oblong": (24, 8, 16, (30, 32), (5, 2), (0, 1)),
    "few images": (2, 8, 16, (12, 12), 3, 1),
}


def tensors(name, dtype=torch.float32):
    images, inputs, outputs, size, kernel, padding = INPUTS[name]
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    torch.manual_seed(0)
    x = torch.randn(images, inputs, *size).bfloat16().contiguous(memory_format=torch.channels_last)
    # exact in bfloat16, so that a product's only roundings are those of its sums
    weight = (torch.randn(outputs, inputs, *kernel) / (inputs * kernel[0] * kernel[1]) ** 0.5).bfloat16()
    return x, weight.to(dtype), torch.randn(outputs).to(dtype), padding


def run(x, weight, bias, padding):
    return ops.conv2d(x, weight, bias, padding=padding, activation="relu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", INPUTS)
def test_gradients(name, dtype):
    *leaves, padding = tensors(name, dtype)
    leaves = [t.requires_grad_() for t in leaves]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        output = run(*leaves, padding)
    cotangent = torch.randn(output.shape).bfloat16()
    found = torch.autograd.grad(output, leaves, cotangent)
    x, weight, bias = (t.detach().double().requires_grad_() for t in leaves)
    masked = cotangent.double() * (output.double() > 0)
    exact = torch.autograd.grad(F.conv2d(x, weight, bias, padding=padding), (x, weight, bias), masked)
    for own, true in zip(found, exact, strict=True):
        assert_near(own.float(), true, 8e-3)


def test_gradients_do_not_depend_on_threads():
    x, weight, bias, padding = tensors("two of eight")
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    results = []
    for _ in on_threads(1, 2, 3):
        with torch.autocast("cpu", torch.bfloat16):
            output = run(*leaves, padding)
        torch.manual_seed(1)
        results.append(torch.autograd.grad(output, leaves, torch.randn(output.shape).bfloat16()))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_a_gradient_that_is_not_finite_stays_near_its_windows():
    """A column further than without joined pixels; Winograd's algorithm spreads it over a tile."""
    x, weight, bias, padding = tensors("two of eight")
    leaves = [t.requires_grad_() for t in (x, weight)]
    with torch.autocast("cpu", torch.bfloat16):
        output = run(*leaves, bias, padding)
    cotangent = torch.zeros(output.shape).bfloat16()
    cotangent[3, output[3, :, 20, 21].argmax(), 20, 21] = float("nan")
    (grad,) = torch.autograd.grad(output, leaves[:1], cotangent)
    near, far = (torch.zeros(x.shape[2:], dtype=torch.bool) for _ in range(2))
    near[19:22, 20:23] = True
    far[16:25, 17:26] = True
    assert grad[3][:, near].isnan().all()
    assert not grad[:3].isnan().any() and not grad[4:].isnan().any() and not grad[3][:, ~far].isnan().any()
