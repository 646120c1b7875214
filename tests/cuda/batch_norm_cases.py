"""Calls of the batch norm kernels on (pixels, channels) matrices, their truth in float64, comparison."""

from dataclasses import dataclass, field

import torch
from host_program import ABSENT, DENSE, DTYPES, Answer, Buffer, Call, ImageBuffer, Placement, raw, tensor_of
from torch import Tensor

# Activation::Kind of csrc/activation.h, with the numbers that hold where none are written.
ACTIVATIONS = {
    "none": (0, 0.0, 0.0),
    "relu": (1, 0.0, 0.0),
    "sigmoid": (2, 0.0, 0.0),
    "hardtanh(-0.5, 0.75)": (3, -0.5, 0.75),
    "leaky_relu(0.2)": (4, 0.2, 0.0),
    "hardsigmoid": (5, 0.0, 0.0),
    "hardswish": (6, 0.0, 0.0),
    "silu": (7, 0.0, 0.0),
    "tanh": (8, 0.0, 0.0),
    "elu(1.5)": (11, 1.5, 0.0),
}
BY_RESULT = ("relu", "sigmoid", "hardtanh(-0.5, 0.75)", "leaky_relu(0.2)", "hardsigmoid", "tanh", "elu(1.5)")
NONE, MASK, RESULT = 0, 1, 2  # where the activation's gradient comes from

# Half a unit in the last place of the stored type, and what float32 arithmetic adds to it.
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
FLOAT32 = 2e-6

# Pixels and channels: one value, odd counts, whole packs, more channels than a block has threads for.
SHAPES = ((1, 1), (2, 3), (70, 3), (33, 7), (64, 8), (45, 24), (30, 33), (5, 257), (700, 16), (19, 2056))
PLACEMENTS = (
    DENSE,
    Placement(misalignment=1),
    Placement(before=8, behind=16),
    Placement(before=3, behind=2),
)


def activate(name: str, x: Tensor) -> Tensor:
    from cnnfast.reference.activation import activate

    return activate(x, name)


@dataclass
class Case:
    pixels: int
    channels: int
    dtype: torch.dtype = torch.float32
    activation: str = "none"
    residual: bool = True
    parameters: bool = True  # weight and bias
    placement: Placement = DENSE
    blocks: int = 6
    seed: int = 0
    eps: float = 1e-5
    offset: float = 0.3  # of all values
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        random = torch.Generator().manual_seed(self.seed + 1000 * self.pixels + self.channels)

        def normal(*size):
            return torch.randn(*size, generator=random)

        image = (self.pixels, self.channels)
        self.tensors = {
            "input": (normal(*image) + self.offset).to(self.dtype),
            "residual": normal(*image).to(self.dtype),
            "grad": normal(*image).to(self.dtype),
            "mean": normal(self.channels) + self.offset,
            "var": normal(self.channels).square() + 0.1,
            "weight": normal(self.channels),
            "bias": normal(self.channels),
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def image(self, tensor: Tensor | None, output=False, present=True) -> ImageBuffer | None:
        if not present:
            return None
        return ImageBuffer(tensor, (self.pixels, self.channels), self.dtype, self.placement, output)


def floats(tensor: Tensor | None) -> Buffer:
    return ABSENT if tensor is None else Buffer(raw(tensor.float()))


def wanted_floats(count: int, wanted: bool = True) -> Buffer:
    return Buffer(bytes=4 * count, output=True) if wanted else ABSENT


def call(case: Case, name: str, buffers: list, flag: bool = False, source: int = 0) -> Call:
    """`buffers`: ImageBuffer, Buffer, or None for what is absent."""
    kind, a, b = ACTIVATIONS[case.activation]
    pixels = [x.stride if isinstance(x, ImageBuffer) else 0 for x in buffers]
    plain = [x.buffer if isinstance(x, ImageBuffer) else ABSENT if x is None else x for x in buffers]
    options = [DTYPES.index(case.dtype), case.pixels, case.channels, case.blocks, kind, flag, source]
    return Call(name, [*options, *pixels], [case.eps, a, b], plain, case.seed)


def result_floats(answer: Answer, place: int) -> Tensor:
    return tensor_of(answer.outputs[place], torch.float32, -1)


# ---- forward


def forward_buffers(case: Case, mask: bool = False, in_place: bool = False) -> list:
    mask_bytes = (case.pixels * case.channels + 7) // 8
    optional = {name: case[name] if case.parameters else None for name in ("weight", "bias")}
    return [
        case.image(case["input"]),
        case.image(case["residual"], present=case.residual),
        case.image(None, output=True),
        Buffer(bytes=mask_bytes, output=True) if mask else ABSENT,
        floats(case["mean"]),
        floats(case["var"]),
        floats(optional["weight"]),
        floats(optional["bias"]),
    ]


def forward_truth(case: Case) -> Tensor:
    y = (case["input"].double() - case["mean"].double()) / torch.sqrt(case["var"].double() + case.eps)
    if case.parameters:
        y = y * case["weight"].double() + case["bias"].double()
    if case.residual:
        y = y + case["residual"].double()
    return activate(case.activation, y)


def assert_images_near(case: Case, actual: Tensor, truth: Tensor, scale: float, where: str = "") -> None:
    """`scale`: how large the terms are that truth is the sum of; float32 errors are relative to them."""
    assert actual.shape == truth.shape
    allowed = (
        ROUNDING[case.dtype] * truth.abs() * 1.01 + FLOAT32 * scale + 2e-7 * (case.dtype == torch.float16)
    )
    wrong = ~((actual.double() - truth).abs() <= allowed)
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{where}: {int(wrong.sum())} of {wrong.numel()} wrong, first at {place}: "
            f"{actual[place].item()} for {truth[place].item()}\n{case}"
        )


def bits_of(mask: bytes, pixels: int, channels: int) -> Tensor:
    bits = tensor_of(mask, torch.uint8, -1, 1) >> torch.arange(8, dtype=torch.uint8) & 1
    flat = bits.flatten()
    assert not flat[pixels * channels :].any(), "bits behind the last value"
    return flat[: pixels * channels].bool().view(pixels, channels)


def mask_of(positive: Tensor) -> Buffer:
    flat = torch.zeros((positive.numel() + 7) // 8 * 8, dtype=torch.uint8)
    flat[: positive.numel()] = positive.flatten()
    weights = 1 << torch.arange(8, dtype=torch.int32)
    return Buffer(raw((flat.view(-1, 8).int() * weights).sum(1).to(torch.uint8)))


# ---- backward


@dataclass
class Backward:
    """What a call of the backward is to give, by name, and its buffers."""

    batch_statistics: bool
    source: int
    residual: bool  # its gradient is wanted
    result: Tensor  # of the activation, as stored


def backward_setup(case: Case, batch_statistics: bool, source: int, residual: bool) -> Backward:
    """Mean and var become the input's own where the batch's statistics are asked for."""
    if batch_statistics:
        x = case["input"].double()
        case.tensors["mean"] = x.mean(0).float()
        case.tensors["var"] = x.var(0, correction=0).float()
    return Backward(batch_statistics, source, residual, forward_truth(case).to(case.dtype))


def backward_buffers(case: Case, setup: Backward, grad_input: bool = True) -> list:
    statistics = [wanted_floats(case.channels, not setup.batch_statistics)] * 2
    return [
        case.image(case["grad"]),
        case.image(case["input"]),
        case.image(setup.result, present=setup.source == RESULT),
        mask_of(~(setup.result <= 0)) if setup.source == MASK else ABSENT,
        case.image(None, output=True, present=grad_input),
        case.image(None, output=True, present=setup.residual),
        floats(case["mean"]),
        floats(case["var"]),
        floats(case["weight"] if case.parameters else None),
        wanted_floats(case.channels),
        wanted_floats(case.channels),
        *statistics,
    ]


def activation_gradient(name: str, grad: Tensor, result: Tensor) -> Tensor:
    """By what the activation gave, in float64."""
    if name == "none":
        return grad
    if name == "relu":
        return torch.where(result <= 0, 0.0, grad)
    if name == "sigmoid":
        return grad * (1 - result) * result
    if name.startswith("hardtanh"):
        return torch.where((result <= -0.5) | (result >= 0.75), 0.0, grad)
    if name.startswith("leaky_relu"):
        return torch.where(result > 0, grad, 0.2 * grad)
    if name == "hardsigmoid":
        return torch.where((result <= 0) | (result >= 1), 0.0, grad / 6)
    if name == "tanh":
        return grad * (1 - result**2)
    assert name.startswith("elu")
    return torch.where(result <= 0, grad * (result + 1.5), grad)


def backward_truth(case: Case, setup: Backward) -> dict[str, Tensor]:
    """By the formula, from the stored result: gradients of residual, input, weight, bias, mean, var."""
    behind = activation_gradient(case.activation, case["grad"].double(), setup.result.double())
    stored = behind.to(case.dtype).double()
    centred = case["input"].double() - case["mean"].double()
    inverse = 1 / torch.sqrt(case["var"].double() + case.eps)
    scale = inverse * (case["weight"].double() if case.parameters else 1.0)
    total, product = stored.sum(0), (stored * centred).sum(0)
    grad = scale * stored
    if setup.batch_statistics:
        grad = grad - scale * (total + centred * inverse**2 * product) / case.pixels
    return {
        "residual": behind,
        "input": grad,
        "weight": product * inverse,
        "bias": total,
        "mean": -scale * total,
        "var": -0.5 * scale * inverse**2 * product,
    }
