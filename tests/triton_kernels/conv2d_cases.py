"""Cases of the Triton convolution and their check, for the interpreter (CPU) and for a GPU alike."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = {"none": lambda y: y, "relu": torch.relu, "sigmoid": torch.sigmoid}
# Relative error of the last rounding. The interpreter cuts bfloat16 off where a GPU rounds.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}


@dataclass(frozen=True)
class Shape:
    """One convolution: input (N, C, H, W), weight (out, C / groups, kh, kw) and the options of conv2d."""

    input: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    options: dict = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        options = "_".join(f"{name}{value}".replace(" ", "") for name, value in self.options.items())
        return "x".join(map(str, self.input)) + "_to_" + "x".join(map(str, self.weight)) + "_" + options


SHAPES = (
    Shape((1, 1, 1, 1), (1, 1, 1, 1)),
    Shape((1, 1, 14, 13), (6, 1, 5, 5), {"padding": 2}),
    Shape((2, 3, 13, 15), (13, 3, 7, 7), {"stride": 2, "padding": 3}),
    Shape((2, 17, 5, 7), (33, 17, 3, 3), {"padding": 1}),
    Shape((1, 64, 5, 6), (65, 64, 3, 3), {"padding": 1}),
    Shape((3, 67, 5, 5), (5, 67, 1, 1)),
    Shape((2, 16, 5, 8), (16, 16, 3, 3), {"padding": 1}),
    Shape((1, 5, 11, 13), (7, 5, 3, 5), {"stride": (2, 3), "padding": (1, 2), "dilation": (2, 1)}),
    Shape((2, 12, 9, 9), (8, 3, 3, 3), {"padding": 2, "dilation": 2, "groups": 4}),
    Shape((1, 34, 6, 7), (70, 17, 3, 3), {"padding": 1, "groups": 2}),
    Shape((1, 9, 5, 7), (9, 1, 3, 3), {"padding": 1, "groups": 9}),
    Shape((1, 3, 4, 4), (4, 3, 1, 1), {"padding": 2, "stride": 3}),
    Shape((2, 16, 7, 6), (24, 16, 1, 1), {"stride": 2}),
    Shape((1, 8, 9, 8), (16, 8, 3, 3), {"padding": 1, "stride": 2}),
    Shape((1, 4, 9, 11), (3, 4, 3, 2), {"padding": 2, "stride": (2, 4), "dilation": (2, 6)}),
    Shape((1, 2, 2, 3), (5, 2, 2, 2), {"padding": 2, "stride": 5}),
)
# Of the prologue: a shift that would be seen if it leaked into the padding.
SHIFT = 3.0


def make_operands(shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Input, weight, bias, scale and residual of a shape, the same on every device."""
    random = torch.Generator().manual_seed(seed)
    spatial = F.conv2d(
        torch.empty(shape.input, device="meta"), torch.empty(shape.weight, device="meta"), **shape.options
    )
    sizes = {
        "input": shape.input,
        "weight": shape.weight,
        "bias": shape.weight[:1],
        "scale": shape.weight[:1],
        "residual": spatial.shape,
    }
    return {name: torch.randn(*size, generator=random).to(device, dtype) for name, size in sizes.items()}


def make_prologue(channels: int, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    scale, shift = torch.randn(channels, generator=random), torch.randn(channels, generator=random) + SHIFT
    return {"pre_scale": scale.to(device, dtype), "pre_shift": shift.to(device, dtype)}


def after_prologue(input: Tensor, prologue: dict[str, Tensor], relu: bool) -> tuple[Tensor, Tensor]:
    """What the convolution multiplies, in float64, and the sums of the absolute terms behind it."""
    scale, shift = (t.cpu().double()[:, None, None] for t in (prologue["pre_scale"], prologue["pre_shift"]))
    x = input.cpu().double()
    value = x * scale + shift
    return torch.relu(value) if relu else value, (x * scale).abs() + shift.abs()


def expected_and_bound(operands: dict[str, Tensor], options: dict, activation: str) -> tuple[Tensor, Tensor]:
    """The answer in float64 and, per element, the sum of the absolute terms that it was rounded from."""

    def per_channel(name: str, default: float) -> Tensor:
        values = operands.get(name)
        return torch.tensor(default).double() if values is None else values.cpu().double()[:, None, None]

    x, w = operands["input"].cpu().double(), operands["weight"].cpu().double()
    residual = operands.get("residual")
    residual = torch.zeros(()) if residual is None else residual.cpu().double()
    scale, bias = per_channel("scale", 1.0), per_channel("bias", 0.0)
    y = F.conv2d(x, w, **options) * scale + bias + residual
    terms = F.conv2d(x.abs(), w.abs(), **options) * scale.abs() + bias.abs() + residual.abs()
    return ACTIVATIONS[activation](y), terms


def assert_close(
    output: Tensor,
    operands: dict[str, Tensor],
    options: dict,
    activation: str = "none",
    product_error: float = 2e-6,
) -> None:
    """product_error: relative error of a product and its share of the sums (2e-6 float32, 1e-3 TF32)."""
    expected, terms = expected_and_bound(operands, options, activation)
    assert_within(output, expected, product_error * terms)


def assert_within(output: Tensor, expected: Tensor, error: Tensor) -> None:
    """Within `error` of the answer and one rounding of it."""
    assert output.shape == expected.shape
    allowed = ROUNDING[output.dtype] * expected.abs() + error + 1e-7
    if output.dtype == torch.float16:
        allowed = allowed + 2.0**-24  # numbers below the normal range
    wrong = ~((output.cpu().double() - expected).abs() <= allowed)
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()} wrong, first at {wrong.nonzero()[0].tolist()}: "
        f"{output.cpu()[wrong][0]} instead of {expected[wrong][0]}"
    )


def make_gradient_operands(shape: Shape, dtype: torch.dtype) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    meta = torch.empty(shape.input, device="meta"), torch.empty(shape.weight, device="meta")
    sizes = {"x": shape.input, "w": shape.weight, "dy": F.conv2d(*meta, **shape.options).shape}
    return {name: torch.randn(*size, generator=random).to(dtype) for name, size in sizes.items()}


def gradients(x, w, dy, options) -> tuple[Tensor, Tensor]:
    x, w = x.double().requires_grad_(), w.double().requires_grad_()
    return torch.autograd.grad(F.conv2d(x, w, **options), (x, w), dy.double())


def gradients_and_bounds(x, w, dy, options, error: float = 2e-6):
    bounds = gradients(x.abs(), w.abs(), dy.abs(), options)
    return gradients(x, w, dy, options), [bound * error for bound in bounds]
