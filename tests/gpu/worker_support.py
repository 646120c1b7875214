"""What the requests of worker.py share: the library, the stub and fake kernels, cases, calls, comparisons."""

import ctypes
import sys

import torch
import torch.nn.functional as F

torch.manual_seed(0)
torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # the subset of kernels has none in TF32
torch.ops.load_library(sys.argv[1])
STUB = ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_GLOBAL)
FAKE = ctypes.CDLL(sys.argv[1])  # fake_kernels.cpp, or csrc/cuda's stand-ins, are part of the library
STUB.stub_launch.restype = STUB.stub_violation.restype = ctypes.c_char_p
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
CASES = {
    "pointwise": ((2, 32, 5, 7), (16, 32, 1, 1), {}),
    "padded": ((2, 16, 6, 5), (24, 16, 3, 3), {"padding": [1, 1]}),
    "strided": ((1, 16, 9, 8), (8, 16, 3, 2), {"stride": [2, 1], "padding": [1, 0], "dilation": [1, 2]}),
    "spread": (
        (1, 16, 9, 9),
        (24, 16, 3, 3),
        {"stride": [2, 2], "padding": [1, 1], "dilation": [2, 2]},
    ),
    "grouped": ((2, 32, 4, 4), (16, 16, 3, 3), {"padding": [1, 1], "groups": 2}),
    "first_layer": (
        (2, 3, 13, 11),
        (5, 3, 7, 7),
        {"stride": [2, 2], "padding": [3, 3], "dtype": torch.float32},
    ),
}


def set_knob(name: str, value: int) -> None:
    STUB.stub_set(name.encode(), value)


def call(x, w, bias=None, scale=None, residual=None, activation="relu", **options):
    op = torch.ops.cnnfast.conv2d.default
    return op.redispatch(CUDA, x, w, bias, scale, residual, activation=activation, **options)


def below_autograd(name: str, *arguments, **options):
    """An operator's kernel for CUDA tensors, on those of the CPU."""
    return getattr(torch.ops.cnnfast, name).default.redispatch(CUDA, *arguments, **options)


def operands(case: str, seed: int = 0):
    size, weight, options = CASES[case]
    options = dict(options)
    dtype = options.pop("dtype", torch.float16)
    random = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(*shape, generator=random).to(dtype)

    x = make(*size).contiguous(memory_format=torch.channels_last)
    y_size = F.conv2d(torch.empty(size), torch.empty(weight), **options).shape
    residual = make(*y_size).contiguous(memory_format=torch.channels_last)
    return x, make(*weight), make(weight[0]), make(weight[0]), residual, options


def expected(x, w, bias, scale, residual, options):
    y = F.conv2d(x.double(), w.double(), **options)
    y = y if scale is None else y * scale.double()[:, None, None]
    y = y if bias is None else y + bias.double()[:, None, None]
    return torch.relu(y if residual is None else y + residual.double()).to(x.dtype)


def launches() -> list[list[str]]:
    return [STUB.stub_launch(i).decode().split() for i in range(STUB.stub_launches())]


def check(y, wanted) -> None:
    assert y.is_contiguous(memory_format=torch.channels_last), y.stride()
    torch.testing.assert_close(y, wanted, rtol=2e-3, atol=2e-3)
    assert not STUB.stub_violation(), STUB.stub_violation()


def error_of(function) -> str:
    try:
        function()
    except (RuntimeError, ValueError) as error:
        return str(error)
    raise AssertionError("no error was raised")


GEOMETRY = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}


def near(actual, wanted) -> None:
    tolerance = 1e-5 if actual.dtype == torch.float32 else 4e-3
    scale = max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=tolerance * scale)
    assert not STUB.stub_violation(), STUB.stub_violation()


def normalised(x, mean, var, weight, bias):
    scale = weight.double() / (var.double() + 1e-5).sqrt()
    per_channel = [t.double()[:, None, None] for t in (mean, scale, bias)]
    return torch.relu((x.double() - per_channel[0]) * per_channel[1] + per_channel[2])


def bits_of(y):
    positive = ~(y.permute(0, 2, 3, 1).reshape(-1) <= 0)
    positive = F.pad(positive.int(), (0, -positive.numel() % 8)).view(-1, 8)
    return (positive * 2 ** torch.arange(8)).sum(1).to(torch.uint8)


def two_backends():
    """name -> (call, what it must give): operators that ATen and CUDA kernels have."""
    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last).double()
    weight, bias, mean = torch.randn(3, 6).double()
    var = torch.rand(6).double() + 0.5
    batch = F.batch_norm(x, None, None, weight, bias, True)
    pool, no_dilation = ([3, 2], [2, 2], [1, 1]), [1, 1]
    leaf = x.clone().requires_grad_()
    pooled, averaged = F.max_pool2d(leaf, *pool), F.avg_pool2d(leaf, *pool, count_include_pad=False)
    lrn = F.local_response_norm(leaf, 3)

    def of(y):
        return torch.autograd.grad(y.sum(), leaf, retain_graph=True)[0]

    def grad(y):
        return torch.ones_like(y).detach()

    statistics = (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))
    normed = F.batch_norm(leaf, None, None, weight, bias, True)
    by_relu = torch.relu(normed)
    backward = (x, *statistics, weight)
    first = [True, *[False] * 5]
    return {
        "batch_norm_act": (
            (x, mean, var, weight, bias),
            F.batch_norm(x, mean, var, weight, bias),
        ),
        "batch_norm2d": ((x, weight, bias), batch),
        "batch_norm2d_relu": ((x, weight, bias), torch.relu(batch)),
        "batch_norm2d_backward": (
            (grad(normed), *backward, batch, 1e-5, "none", True, first),
            of(normed),
        ),
        "batch_norm2d_relu_backward": (
            (grad(by_relu), *backward, bits_of(torch.relu(batch)), 1e-5, first[:4]),
            of(by_relu),
        ),
        "max_pool2d": ((x, *pool, no_dilation, False), pooled),
        "max_pool2d_backward": ((grad(pooled), x, *pool, no_dilation, False), of(pooled)),
        "avg_pool2d": ((x, *pool, False, False, None), averaged),
        "avg_pool2d_backward": ((grad(averaged), x, *pool, False, False, None), of(averaged)),
        "local_response_norm": ((x, 3), lrn),
        "local_response_norm_backward": ((grad(lrn), x, 3, 1e-4, 0.75, 1.0), of(lrn)),
    }


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)
