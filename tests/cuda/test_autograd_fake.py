"""What autograd runs and keeps for CUDA tensors, on fake ones: no device is needed."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cnnfast import _ext

pytestmark = [
    pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators"),
    pytest.mark.skipif(
        torch.version.cuda is None, reason="torch without CUDA knows no CUDA tensors, fake or not"
    ),
]
SHAPE = (2, 12, 5, 7)


class Names(TorchDispatchMode):
    """The operators that run below autograd."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name().split(".")[0])
        return func(*args, **(kwargs or {}))


def images(dtype=torch.float16, device="cuda", shape=SHAPE):
    return torch.empty(shape, dtype=dtype, device=device).requires_grad_()


def run(body):
    """The operators of a forward, and what it saved: (type, number of elements)."""
    saved = []

    def pack(tensor):
        saved.append((tensor.dtype, tensor.numel()))
        return tensor

    with FakeTensorMode(), Names() as names, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = body()
        assert output.requires_grad
    return names.seen, saved


BYTES = (2 * 12 * 5 * 7 + 7) // 8


def test_batch_norm_with_relu_keeps_bits_on_a_gpu():
    names, saved = run(lambda: torch.ops.cnnfast.batch_norm2d(images(), activation="relu")[0])
    assert "cnnfast::batch_norm2d_relu" in names and "cnnfast::batch_norm2d" not in names
    values = 2 * 12 * 5 * 7
    assert (torch.uint8, BYTES) in saved
    assert [numel for _, numel in saved].count(values) == 1, "the input alone, not the output"


def test_convolution_with_batch_norm_and_relu_keeps_bits_on_a_gpu():
    def body():
        weight = images(shape=(12, 12, 1, 1))
        residual = images()
        return torch.ops.cnnfast.conv2d_batch_norm(images(), weight, residual=residual, activation="relu")[0]

    names, saved = run(body)
    assert "cnnfast::conv2d_batch_norm_relu" in names
    assert (torch.uint8, BYTES) in saved
    assert [numel for _, numel in saved].count(2 * 12 * 5 * 7) == 2, "input and convolution"


@pytest.mark.parametrize(
    ("dtype", "device", "activation"),
    ((torch.float64, "cuda", "relu"), (torch.float32, "cpu", "relu"), (torch.float16, "cuda", "sigmoid")),
)
def test_other_types_devices_and_activations_keep_the_output(dtype, device, activation):
    def body():
        return torch.ops.cnnfast.batch_norm2d(images(dtype, device), activation=activation)[0]

    names, saved = run(body)
    assert "cnnfast::batch_norm2d" in names and "cnnfast::batch_norm2d_relu" not in names
    assert all(kind != torch.uint8 for kind, _ in saved)
