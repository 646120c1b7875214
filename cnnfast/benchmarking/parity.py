"""Right answers before times: every contender is held against float64 eager PyTorch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .case import AUTOCAST_FACTOR, SPREAD, TOLERANCE, Case
from .fill import fill_weights, images, load_state_dict, take_statistics
from .libraries import is_library_name

# Batches that a round cycles through, so that no timing is of one cached input.
BATCHES = 4
# Images whose statistics the batch norms of other packages' networks are given.
_STATISTICS = 8
# Of a step's loss and of its gradients' norms. Rounding turns single ReLUs of deep networks on or off: eager
# channels_last itself is up to 2e-3 off. Under autocast it is up to 0.1 off at the least norms, fused nin at
# batch 4 0.23 (at 16 both below 0.04).
_LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
_GRADIENT_TOLERANCE = {"float32": 5e-3, "bfloat16": 2.5e-1}


@dataclass(frozen=True)
class Parity:
    """`error` of `quantity`, the one nearest to or furthest past its `tolerance` (both in its own unit)."""

    quantity: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # false for NaN

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        return f"{self.quantity} differs by {self.error:.3g} (allowed {self.tolerance:.3g})"


def prepare(case: Case) -> int:
    """Writes what every contender of a case starts from: weights, batches, float64 reference.

    Returns the operations of one call, a multiply-add being two: those of convolutions and matrix products,
    convolutions being direct, and three times as many for a training step.
    """
    model = case.spec.module()
    if not case.weights_file.exists():
        _initial_weights(case, model)
        torch.save(model.state_dict(), case.weights_file)
    model.load_state_dict(load_state_dict(case.weights_file))
    batches = [images(case.batch, case.spec.input_shape, seed) for seed in range(1, BATCHES + 1)]
    saved = {"inputs": batches}
    if case.mode == "training":
        saved["targets"], saved["reference"] = _training_reference(model, batches)
    else:
        saved["autocast_error"] = _autocast_error(case, model, batches)
        saved["reference"] = _inference_reference(case, model, batches, saved["autocast_error"])
    torch.save(saved, case.batches_file)
    return _operations(case, model.eval(), batches[0][:1].double())


def _operations(case: Case, model: nn.Module, image: Tensor) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() * case.batch * (3 if case.mode == "training" else 1)


def _initial_weights(case: Case, model: nn.Module) -> None:
    if case.spec.state_dict_path is None:
        fill_weights(model, case.spec.gain)
        if is_library_name(case.spec.build):
            take_statistics(model, images(_STATISTICS, case.spec.input_shape, seed=0))
    else:
        model.load_state_dict(load_state_dict(case.spec.state_dict_path))


def _inference_reference(
    case: Case, model: nn.Module, batches: Sequence[Tensor], autocast_error: float
) -> list[Tensor]:
    model.double().eval()
    with torch.inference_mode():
        reference = [model(batch.double()) for batch in batches]
    _require_spread(case, reference, autocast_error)
    return reference


def _autocast_error(case: Case, model: nn.Module, batches: Sequence[Tensor]) -> float:
    """Largest difference that rounding layer by layer makes."""
    if case.dtype != "bfloat16":
        return 0.0
    model.float().eval()
    error = 0.0
    for batch in batches:
        with torch.inference_mode():
            exact = model(batch)
            with torch.autocast("cpu", torch.bfloat16):
                error = max(error, (model(batch).float() - exact).abs().max().item())
    return error


def _tolerance(case: Case, reference: Sequence[Tensor], autocast_error: float) -> float:
    largest = max(expected.abs().max().item() for expected in reference)
    return max(TOLERANCE[case.dtype] * largest, AUTOCAST_FACTOR * autocast_error)


def _require_spread(case: Case, reference: Sequence[Tensor], autocast_error: float) -> None:
    """A network whose answer hardly depends on its input would make every parity check pass."""
    rows = torch.cat([output.flatten(1) for output in reference])
    spread = (rows - rows.mean(0)).abs().max().item()
    tolerance = _tolerance(case, reference, autocast_error)
    if not (
        spread > SPREAD[case.dtype] * TOLERANCE[case.dtype] * rows.abs().max().item() and spread > tolerance
    ):
        raise ValueError(
            f"{case.title}: outputs of different images differ by {spread:.3g} only, "
            f"too little beside the tolerance {tolerance:.3g} to tell right answers from wrong ones"
        )


def _training_reference(
    model: nn.Module, batches: Sequence[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    without_dropout(model)
    model.double().train()
    first = model(batches[0].double())
    if first.ndim != 2:
        raise ValueError(
            f"training needs class scores (N, classes), but the network gives {tuple(first.shape)}"
        )
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randint(first.shape[1], (len(batch),), generator=generator) for batch in batches]
    loss = nn.functional.cross_entropy(first, targets[0])
    loss.backward()
    return targets, {"loss": loss.detach(), "gradients": gradient_norms(model)}


def without_dropout(model: nn.Module) -> None:
    """Sets every dropout's p to 0: a step must have one right answer."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


def gradient_norms(model: nn.Module) -> Tensor:
    """Float64 norms of all gradients, in the order of the parameters; a missing gradient counts as NaN."""
    norms = [float("nan") if p.grad is None else p.grad.double().norm().item() for p in model.parameters()]
    return torch.tensor(norms, dtype=torch.float64)


def compare_outputs(
    case: Case, reference: Sequence[Tensor], outputs: Sequence[Tensor], autocast_error: float = 0.0
) -> Parity:
    """Largest difference over all batches against the dtype's part of the largest reference value.

    AUTOCAST_FACTOR times `autocast_error`, eager autocast's own largest difference, is allowed as well.
    """
    tolerance = _tolerance(case, reference, autocast_error)
    worst = 0.0
    for expected, output in zip(reference, outputs, strict=True):
        if output.shape != expected.shape:
            found = f"{tuple(output.shape)} instead of {tuple(expected.shape)}"
            return Parity(f"output shape {found}", float("nan"), tolerance)
        error = (output.double() - expected).abs().max().item()
        worst = error if error != error else max(worst, error)
        if worst != worst:
            break
    return Parity("output", worst, tolerance)


def compare_training(
    reference: dict[str, Tensor], loss: Tensor, gradients: Tensor, dtype: str = "float32"
) -> Parity:
    """Loss and gradient norms of one step, each relative to its reference.

    Norms below 1e-3 of the largest are measured against that instead, and zeros against a tenth of the
    largest: a convolution bias in front of a batch norm has a true gradient of zero, of which rounding leaves
    up to 1e-4 of the largest, in eager PyTorch too.
    """
    norms = reference["gradients"]
    if gradients.shape != norms.shape:
        return Parity(f"number of gradients {len(gradients)} instead of {len(norms)}", float("nan"), 0.0)
    expected_loss = reference["loss"].item()
    loss_error = abs(loss.item() - expected_loss) / max(abs(expected_loss), 1e-3)
    largest = norms.max()
    scale = torch.where(norms < 1e-6 * largest, 0.1 * largest, norms.clamp_min(1e-3 * largest))
    relative = (gradients - norms).abs() / scale
    checks = [
        Parity("loss (relative)", loss_error, _LOSS_TOLERANCE[dtype]),
        Parity("gradient norm (relative)", relative.max().item(), _GRADIENT_TOLERANCE[dtype]),
    ]
    return max(checks, key=_rank)


def _rank(check: Parity) -> float:
    ratio = check.error / check.tolerance
    return float("inf") if ratio != ratio else ratio
