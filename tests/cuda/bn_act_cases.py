"""Cases of batch_norm_act and their check, for the kernel on the host and on a GPU alike."""

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = ("none", "relu", "sigmoid")
# Half a unit in the last place of the stored type, and what float32 arithmetic adds to it.
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
FLOAT32 = 1e-6
SHAPES = (
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 8, 4, 4),
    (3, 16, 3, 5),
    (2, 33, 3, 3),
    (1, 257, 2, 3),
    (2, 64, 7, 7),
)


@dataclass
class Case:
    """One call. images: (N, C, H, W) tensors; blocks 0 means the launcher's own grid."""

    input: Tensor
    mean: Tensor
    var: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    activation: str = "none"
    eps: float = 1e-5
    blocks: int = 0
    threads: int = 0
    seed: int = 0
    misalignment: int = 0  # elements by which the buffers miss a 16-byte boundary


def make_case(shape, dtype, optional=True, seed=0, **options) -> Case:
    random = torch.Generator().manual_seed(seed)
    channels = shape[1]

    def normal(*size):
        return torch.randn(*size, generator=random)

    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    return Case(
        input=normal(*shape).to(dtype),
        mean=normal(channels).to(statistics),
        var=(normal(channels).square() + 0.1).to(statistics),
        weight=normal(channels).to(statistics) if optional else None,
        bias=normal(channels).to(statistics) if optional else None,
        residual=normal(*shape).to(dtype) if optional else None,
        seed=seed,
        **options,
    )


def reference(case: Case) -> Tensor:
    """The same formula in float64 by plain PyTorch."""

    def channel(values: Tensor) -> Tensor:
        return values.double().view(1, -1, 1, 1)

    y = (case.input.double() - channel(case.mean)) / torch.sqrt(channel(case.var) + case.eps)
    y = y if case.weight is None else y * channel(case.weight)
    y = y if case.bias is None else y + channel(case.bias)
    y = y if case.residual is None else y + case.residual.double()
    return {"none": lambda v: v, "relu": torch.relu, "sigmoid": torch.sigmoid}[case.activation](y)


def assert_close(case: Case, output: Tensor) -> None:
    expected = reference(case)
    # The terms of the sum may cancel: float32 errors are relative to the largest, the last rounding is not.
    inputs = [
        t.double().abs().max() for t in (case.input, case.mean, case.residual, case.bias) if t is not None
    ]
    gain = ((case.weight if case.weight is not None else torch.ones(1)).abs() / case.var.sqrt()).max()
    allowed = ROUNDING.get(case.input.dtype, 0.0) * expected.abs() + FLOAT32 * (1 + gain) * sum(inputs)
    wrong = ~((output.double() - expected).abs() <= allowed)
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()} wrong, first at {wrong.nonzero()[0].tolist()}"
    )
