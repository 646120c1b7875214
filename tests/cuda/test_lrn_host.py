"""The bodies of csrc/cuda/lrn.cuh on the host, under sanitizers, against float64; outputs NaN beforehand."""

import itertools

import pytest
import torch
from host_program import ABSENT, DTYPES, Buffer, Call, raw, run, tensor_of

from cnnfast import reference

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
ROUNDING = {torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
# Pixels and channels: less than a stretch of 2048 values, several, pixels that end anywhere, one channel.
SHAPES = ((1, 1), (3, 7), (40, 96), (700, 3), (5, 2050), (33, 64))
SIZES = (5, 1, 4, 17, 64)
PARAMETERS = ((0.5, 0.75, 1.0), (1.0, 0.5, 2.0), (0.3, 1.3, 0.7))


def case(shape, dtype, seed=0):
    random = torch.Generator().manual_seed(seed + shape[0])
    return [(2 * torch.randn(shape, generator=random)).to(dtype) for _ in range(2)]


def truth(x, size, alpha, beta, k):
    """Pixels as images of one row."""
    image = x.double().t().reshape(1, x.shape[1], 1, -1)
    return reference.local_response_norm(image, size, alpha, beta, k)[0, :, 0].t()


def call(name, x, grad, size, parameters, misalignment=0, seed=0):
    bytes = misalignment * x.element_size()
    buffers = [
        Buffer(raw(x), misalignment=bytes),
        Buffer(raw(grad), misalignment=bytes) if name == "backward" else ABSENT,
        Buffer(bytes=x.numel() * x.element_size(), output=True, misalignment=bytes),
    ]
    return Call(name, [DTYPES.index(x.dtype), x.numel(), x.shape[1], size], list(parameters), buffers, seed)


def check(program, dtype, combinations):
    calls, expected = [], []
    for i, (shape, size, parameters) in enumerate(combinations):
        x, grad = case(shape, dtype, i)
        wide = x.double().requires_grad_()
        y = truth(wide, size, *parameters)
        (dx,) = torch.autograd.grad(y, wide, grad.double())
        for name, result in (("forward", y), ("backward", dx)):
            calls.append(call(name, x, grad, size, parameters, i % 3, i))
            expected.append((shape, size, parameters, name, result.detach()))
    for (*what, result), answer in zip(expected, run(program, calls), strict=True):
        actual = tensor_of(answer.outputs[2], dtype, *result.shape).double()
        allowed = ROUNDING[dtype] * result.abs() + 3e-6 * result.abs().max() + 1e-7
        assert ((actual - result).abs() <= allowed).all(), what


@pytest.fixture(scope="module")
def program(host_programs):
    return host_programs("lrn_main")


@dtypes
def test_lrn(program, dtype):
    check(program, dtype, zip(SHAPES, itertools.cycle(SIZES), itertools.cycle(PARAMETERS), strict=False))


@pytest.mark.gpu_proof
@dtypes
def test_lrn_of_every_shape_and_size(program, dtype):
    check(program, dtype, itertools.product(SHAPES, (*SIZES, 2, 3, 9, 16, 65), PARAMETERS))


def test_lrn_keeps_nan_within_its_windows(program):
    x, grad = case((40, 96), torch.float32)
    x[7, 40] = torch.nan
    (answer,) = run(program, [call("forward", x, grad, 5, PARAMETERS[0])])
    odd = tensor_of(answer.outputs[2], torch.float32, 40, 96).isnan().nonzero().tolist()
    assert odd == [[7, channel] for channel in range(38, 43)]


def test_lrn_same_bits_for_every_order_of_threads(program):
    x, grad = case((70, 33), torch.float16)
    calls = [call("backward", x, grad, 5, PARAMETERS[0], seed=seed) for seed in range(4)]
    assert len({answer.outputs[2] for answer in run(program, calls)}) == 1


@dtypes
def test_lrn_bytes(program, dtype):
    """One read and one write forward, two and one backward, and what lies around a stretch of 2048 values."""
    x, grad = case((1024, 96), dtype)
    calls = [call(name, x, grad, 5, PARAMETERS[0]) for name in ("forward", "backward")]
    for answer in run(program, calls):
        size = x.numel() * x.element_size()
        for traffic in answer.traffic[:2]:
            if traffic.loads:
                assert size <= traffic.loaded <= 1.15 * size and traffic.loaded == 16 * traffic.loads
        assert answer.traffic[2].stored == size == 16 * answer.traffic[2].stores
    assert answer.traffic[1].loads
