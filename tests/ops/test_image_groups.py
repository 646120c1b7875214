"""Convolutions whose images are worked on in several groups: values and gradients as of all at once."""

import pytest
import torch

from cnnfast import ops, reference

from .support import needs_extension

pytestmark = needs_extension

# images, input channels, size, output channels, kernel, stride, groups: 2 MiB of copies and more
SHAPES = [
    (24, 16, 40, 32, 3, 1, 1),
    (25, 6, 40, 40, 5, 1, 1),
    (40, 3, 64, 16, 7, 2, 1),
    (50, 16, 32, 16, 3, 2, 4),
    (30, 16, 40, 16, 3, 1, 16),
]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2.0**-6}


def call(run, tensors, shape, activation):
    kernel, stride, groups = shape[4:]
    places = ((stride,) * 2, (kernel // 2,) * 2, (1, 1), groups)
    return run(*tensors, places, activation)


def plain(of, input, weight, bias, residual, places, activation):
    return of.conv2d(input, weight, bias, None, residual, *places, activation)


def normalised(of, input, weight, bias, residual, places, activation):
    stride, padding, dilation, groups = places
    channels = weight.shape[0]
    factor = torch.linspace(0.5, 1.5, channels, dtype=bias.dtype)
    return of.conv2d_batch_norm(
        input, weight, bias, factor, None, residual, stride, padding, dilation, groups, activation=activation
    )[0]


def tensors_of(shape, dtype, layout):
    images, channels, size, out, kernel, stride, groups = shape
    torch.manual_seed(0)
    place = (size + 2 * (kernel // 2) - kernel) // stride + 1
    made = [
        torch.randn(images, channels, size, size),
        torch.randn(out, channels // groups, kernel, kernel) / kernel,
        torch.randn(out),
        torch.randn(images, out, place, place),
    ]
    made = [t.to(dtype) for t in made]
    return [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in made]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("run", [plain, normalised])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_groups_of_images(shape, run, dtype, layout):
    # A smooth activation: near zero a ReLU of rounded values is decided otherwise.
    made = tensors_of(shape, dtype, layout)
    exact = [t.double().requires_grad_() for t in made]
    truth = call(lambda *a: run(reference, *a), exact, shape, "sigmoid")
    cotangent = torch.randn_like(truth).to(dtype)
    expected = torch.autograd.grad(truth, exact, cotangent.double())
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        own = [t.clone().requires_grad_() for t in made]
        output = call(lambda *a: run(ops, *a), own, shape, "sigmoid")
        results.append([output.detach(), *torch.autograd.grad(output, own, cotangent)])
    torch.set_num_threads(2)
    # Output, gradients of input, weight, bias, residual; ATen's of depthwise weights depend on threads.
    of_aten = 2 if shape[6] == shape[1] else None
    for place, (one, two) in enumerate(zip(*results, strict=True)):
        assert torch.equal(one, two) or place == of_aten
    for found, true in zip(results[0], [truth, *expected], strict=True):
        scale = true.abs().max().clamp_min(1e-3)
        assert (found.double() - true).abs().max() <= TOLERANCE[dtype] * scale
