"""The bodies of csrc/cuda/pool.cuh on the host, under sanitizers, against float64; outputs NaN beforehand."""

import itertools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from host_program import ABSENT, DENSE, DTYPES, Buffer, Call, ImageBuffer, Placement, raw, run, tensor_of
from torch import Tensor

from cnnfast import reference

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
ROUNDING = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
PLACEMENTS = (DENSE, Placement(misalignment=1), Placement(before=8, behind=8), Placement(before=3, behind=2))


@dataclass
class Window:
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int = 0


WINDOWS = (
    Window((3, 3), (2, 2), (1, 1)),
    Window((2, 3), (2, 1)),
    Window((3, 2), (2, 3), (1, 1), ceil_mode=True, count_include_pad=False),
    Window((3, 3), (1, 1), (1, 1), divisor_override=5),
    Window((5, 1), (3, 2), (2, 0), ceil_mode=True),
    Window((2, 2), (3, 3)),
)
DILATED = (Window((3, 2), (1, 2), (1, 1), (2, 3)), Window((2, 2), (2, 1), (1, 0), (3, 2), True))
SIZES = ((2, 8, 9, 8), (1, 3, 7, 10), (3, 33, 6, 5), (1, 1040, 5, 6))
QUICK = SIZES[:3]


@dataclass
class Case:
    """`images`: (N, C, H, W) of the input, and of the output by F's rules."""

    window: Window
    size: tuple[int, int, int, int]
    dtype: torch.dtype
    placement: Placement = DENSE
    activation: int = 0
    seed: int = 0

    def __post_init__(self):
        random = torch.Generator().manual_seed(self.seed + self.size[1])
        # A few distinct values: windows have several equal largest ones.
        self.input = torch.randint(-6, 7, self.size, generator=random).to(self.dtype) / 4
        w = self.window
        shape = F.max_pool2d(self.input.float(), w.kernel, w.stride, w.padding, w.dilation, w.ceil_mode).shape
        self.out_size = tuple(shape)
        self.grad = torch.randn(self.out_size, generator=random).to(self.dtype)

    def matrix(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).reshape(-1, self.size[1])

    def images(self, matrix: Tensor, size) -> Tensor:
        return matrix.view(size[0], size[2], size[3], size[1]).permute(0, 3, 1, 2)

    def buffer(self, images: Tensor | None, size, output=False) -> ImageBuffer:
        matrix = None if images is None else self.matrix(images)
        shape = (size[0] * size[2] * size[3], size[1])
        return ImageBuffer(matrix, shape, self.dtype, self.placement, output)

    def call(self, name: str, buffers: list) -> Call:
        w = self.window
        numbers = [*self.size[2:], *self.out_size[2:], *w.kernel, *w.stride, *w.padding, *w.dilation]
        ints = [DTYPES.index(self.dtype), self.size[0], self.size[1], *numbers]
        ints += [w.count_include_pad, w.divisor_override, self.activation]
        ints += [x.stride if isinstance(x, ImageBuffer) else 0 for x in buffers]
        plain = [x.buffer if isinstance(x, ImageBuffer) else x for x in buffers]
        return Call(name, ints, [], plain, self.seed)


def cases(dtype, windows, sizes, **options):
    for i, (window, size) in enumerate(itertools.product(windows, sizes)):
        yield Case(window, size, dtype, PLACEMENTS[i % 4], seed=i, **options)


def avg_truth(x: Tensor, w: Window) -> Tensor:
    divisor = w.divisor_override or None
    return F.avg_pool2d(x, w.kernel, w.stride, w.padding, w.ceil_mode, w.count_include_pad, divisor)


def max_truth(x: Tensor, w: Window) -> Tensor:
    return F.max_pool2d(x, w.kernel, w.stride, w.padding, w.dilation, w.ceil_mode)


def assert_near(actual: Tensor, truth: Tensor, dtype, where) -> None:
    error = (actual.double() - truth).abs()
    allowed = ROUNDING[dtype] * truth.abs().clamp(min=1.0)
    assert (error <= allowed).all(), where  # NaN fails as well


def check_forward(program, some, name, truth):
    calls = [
        case.call(name, [case.buffer(case.input, case.size), case.buffer(None, case.out_size, True)])
        for case in some
    ]
    for case, answer in zip(some, run(program, calls), strict=True):
        matrix = case.buffer(None, case.out_size, True).decode(answer.outputs[1])
        expected = truth(case.input.double(), case.window)
        expected = torch.relu(expected) if case.activation == 1 else expected
        assert_near(case.images(matrix, case.out_size), expected, case.dtype, case)


def check_backward(program, some, name, truth):
    calls = []
    for case in some:
        # The winners' memory is a torch allocation in the library: aligned.
        pixels = case.out_size[0] * case.out_size[2] * case.out_size[3]
        winners = Buffer(bytes=pixels * case.size[1]) if name == "max_backward" else ABSENT
        images = [case.buffer(case.grad, case.out_size), case.buffer(case.input, case.size)]
        calls.append(case.call(name, [*images, case.buffer(None, case.size, True), winners]))
    for case, answer in zip(some, run(program, calls), strict=True):
        matrix = case.buffer(None, case.size, True).decode(answer.outputs[2])
        x = case.input.double().requires_grad_()
        (expected,) = torch.autograd.grad(truth(x, case.window), x, case.grad.double())
        assert_near(case.images(matrix, case.size), expected, case.dtype, case)


@pytest.fixture(scope="module")
def program(host_programs):
    return host_programs("pool_main")


KINDS = {"max": (max_truth, WINDOWS + DILATED), "avg": (avg_truth, WINDOWS)}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@dtypes
def test_pool_forward(program, dtype, kind):
    truth, windows = KINDS[kind]
    check_forward(program, list(cases(dtype, windows[::2], QUICK)), kind, truth)
    check_forward(program, list(cases(dtype, windows[:1], QUICK, activation=1)), kind, truth)


@kinds
@dtypes
def test_pool_backward(program, dtype, kind):
    truth, windows = KINDS[kind]
    check_backward(program, list(cases(dtype, windows[::2], QUICK)), f"{kind}_backward", truth)


@pytest.mark.gpu_proof
@kinds
@dtypes
def test_pool_of_every_shape_and_placement(program, dtype, kind):
    truth, windows = KINDS[kind]
    for shift in range(4):
        some = list(cases(dtype, windows, SIZES))
        some = [
            Case(case.window, case.size, dtype, PLACEMENTS[(i + shift) % 4], seed=i + shift)
            for i, case in enumerate(some)
        ]
        check_forward(program, some, kind, truth)
        check_backward(program, some, f"{kind}_backward", truth)


@dtypes
def test_max_pool_keeps_nan_and_infinities(program, dtype):
    case = Case(WINDOWS[0], (1, 8, 9, 8), dtype)
    case.input[0, 2, 3, 3], case.input[0, 3, 0, 0] = torch.nan, torch.inf
    case.input[0, 4] = -torch.inf
    buffers = [case.buffer(case.input, case.size), case.buffer(None, case.out_size, True)]
    (answer,) = run(program, [case.call("max", buffers)])
    flat = tensor_of(answer.outputs[1], dtype, -1, 8)
    expected = max_truth(case.input.double(), case.window)
    torch.testing.assert_close(
        case.images(flat, case.out_size).double(), expected, rtol=0, atol=0, equal_nan=True
    )


def test_max_pool_gradient_goes_to_nan_and_to_the_first_of_equals(program):
    case = Case(Window((2, 2), (2, 2)), (1, 8, 4, 4), torch.float32)
    case.input[0, 0], case.input[0, 1] = 1.0, -torch.inf
    case.input[0, 2, 1, 0], case.input[0, 2, 1, 1] = torch.nan, 5.0
    check_backward(program, [case], "max_backward", max_truth)


@dtypes
def test_global_avg_pool(program, dtype):
    for i, (size, placement) in enumerate(itertools.product(SIZES, PLACEMENTS)):
        case = Case(Window((1, 1), (1, 1)), size, dtype, placement, seed=i)
        output = Buffer(bytes=size[0] * size[1] * case.input.element_size(), output=True)
        (answer,) = run(program, [case.call("global", [case.buffer(case.input, size), output])])
        mean = tensor_of(answer.outputs[1], dtype, size[0], size[1], 1, 1)
        assert_near(mean, reference.global_avg_pool2d(case.input.double()), dtype, case)


@kinds
def test_pool_same_bits_for_every_order_of_threads(program, kind):
    found = set()
    for seed in range(4):
        case = Case(WINDOWS[0], (2, 24, 9, 8), torch.float16)
        case.seed = seed
        pixels = case.out_size[0] * case.out_size[2] * case.out_size[3]
        images = [case.buffer(case.grad, case.out_size), case.buffer(case.input, case.size)]
        winners = Buffer(bytes=pixels * 24)
        call = case.call(f"{kind}_backward", [*images, case.buffer(None, case.size, True), winners])
        found.add(run(program, [call])[0].outputs[2])
    assert len(found) == 1


@dtypes
def test_pool_bytes(program, dtype):
    """Every output once; inputs as often as windows hold them, by 16 bytes; one byte per winner."""
    case = Case(Window((3, 3), (2, 2), (1, 1)), (2, 64, 16, 16), dtype)
    pixels = case.out_size[0] * case.out_size[2] * case.out_size[3]
    images = [case.buffer(case.grad, case.out_size), case.buffer(case.input, case.size)]
    winners = Buffer(bytes=pixels * 64)
    forward, backward = run(
        program,
        [
            case.call("max", [images[1], case.buffer(None, case.out_size, True)]),
            case.call("max_backward", [*images, case.buffer(None, case.size, True), winners]),
        ],
    )
    size = case.input.element_size()
    outputs, inputs = pixels * 64, case.input.numel()
    assert forward.traffic[1].stored == outputs * size
    assert forward.traffic[0].loaded == 16 * forward.traffic[0].loads <= 2.25 * inputs * size
    grad, x, grad_input, winner = backward.traffic
    assert grad_input.stored == inputs * size and grad_input.loaded == 0
    assert x.loaded == forward.traffic[0].loaded
    assert grad.loaded == x.loaded, "a gradient is read once for every input pixel that its window holds"
    assert winner.stored == outputs and winner.loaded * size == grad.loaded


def test_raw_of_an_image_is_nhwc():
    image = torch.arange(24.0).view(1, 2, 3, 4)
    case = Case(WINDOWS[1], (1, 2, 3, 4), torch.float32)
    assert case.matrix(image)[1].tolist() == [1.0, 13.0]
    assert len(raw(image)) == 96
