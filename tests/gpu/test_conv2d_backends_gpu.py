"""Convolutions on a GPU by whatever backend is chosen or forced, against float64."""

import os
import subprocess
import sys

import pytest
import torch

from cnnfast import _ext, ops, reference

pytestmark = pytest.mark.gpu
# Of the largest value. TF32 is allowed.
ERROR = {torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 4e-2}
SHAPES = (
    ((2, 64, 15, 13), (128, 64, 3, 3), [1, 1]),
    ((2, 64, 15, 13), (32, 64, 1, 1), [0, 0]),
    ((2, 3, 33, 31), (13, 3, 7, 7), [3, 3]),
)


def operands(shape, weight, padding, dtype, seed=0):
    random = torch.Generator().manual_seed(seed)
    y = torch.nn.functional.conv2d(torch.empty(shape), torch.empty(weight), padding=padding)
    sizes = (shape, weight, weight[:1], weight[:1], y.shape)
    tensors = [torch.randn(size, generator=random).to("cuda", dtype) for size in sizes]
    return [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]


def check(output, tensors, padding):
    wanted = reference.conv2d(*[t.double() for t in tensors], padding=padding, activation="relu")
    difference = (output.double() - wanted).abs().max() / wanted.abs().max()
    assert difference <= ERROR[output.dtype], difference
    assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", ERROR, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chosen_backend_is_right(shape, dtype):
    *sizes, padding = shape
    tensors = operands(*sizes, padding, dtype)
    with torch.no_grad():
        for _ in range(3):  # timed, then from the table
            check(ops.conv2d(*tensors, padding=padding, activation="relu"), tensors, padding)


def check_gradients(size, weight, padding, dtype):
    x, w = (t.requires_grad_() for t in operands(size, weight, padding, dtype)[:2])
    exact = [t.detach().double().requires_grad_() for t in (x, w)]
    y = torch.ops.cnnfast.conv2d(x, w, padding=padding)
    cotangent = torch.randn_like(y)
    wanted = torch.autograd.grad(
        torch.nn.functional.conv2d(*exact, padding=padding), exact, cotangent.double()
    )
    for found, truth in zip(torch.autograd.grad(y, (x, w), cotangent), wanted, strict=True):
        difference = (found.double() - truth).abs().max() / truth.abs().max()
        assert difference <= ERROR[dtype], difference


@pytest.mark.parametrize("dtype", ERROR, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_by_the_chosen_backend_are_right(shape, dtype):
    for _ in range(2):
        check_gradients(*shape, dtype)
    timed = {row.split()[0] for row in torch.ops.cnnfast.backend_times()}
    if torch.ops.cnnfast.triton_kernels():
        assert {"conv2d_input_grad", "conv2d_weight_grad"} <= timed


def test_graph_replays_with_new_values():
    *sizes, padding = SHAPES[0]
    tensors = operands(*sizes, padding, torch.float16)
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        ops.conv2d(*tensors, padding=padding, activation="relu")
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = ops.conv2d(*tensors, padding=padding, activation="relu")
    for old, new in zip(tensors, operands(*sizes, padding, torch.float16, seed=1), strict=True):
        old.copy_(new)
    graph.replay()
    check(output, tensors, padding)


def test_nothing_is_timed_during_a_capture():
    tensors = operands((1, 24, 9, 7), (40, 24, 3, 3), [1, 1], torch.float16)
    rows = torch.ops.cnnfast.backend_times()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = torch.ops.cnnfast.conv2d(*tensors, padding=[1, 1], activation="relu")
    graph.replay()
    check(output, tensors, [1, 1])
    assert torch.ops.cnnfast.backend_times() == rows


@pytest.mark.parametrize("backend", ("aten", "cuda", "triton"))
def test_forced_backend(backend):
    """In a process of its own: the variable is read once."""
    if backend == "cuda" and not _ext.build_info()["cuda"]:
        pytest.skip("built without CUDA kernels")
    program = (
        "import torch, sys; sys.path.insert(0, sys.argv[1]); import test_conv2d_backends_gpu as t\n"
        "for *sizes, padding in t.SHAPES:\n"
        "  for dtype in t.ERROR:\n"
        "    x = t.operands(*sizes, padding, dtype)\n"
        "    with torch.no_grad():\n"
        "      t.check(t.ops.conv2d(*x, padding=padding, activation='relu'), x, padding)\n"
        "    t.check_gradients(*sizes, padding, dtype)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(__file__)],
        env=os.environ | {"CNNFAST_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
