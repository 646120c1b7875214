"""One network through freeze and fuse: errors relative to the spread over images, coverage, files."""

import copy
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import cnnfast
from cnnfast.freeze import FrozenNet
from cnnfast.report import Coverage, Report, Row

from .calibrate import calibrate
from .half import errors_in_bfloat16
from .networks import Entry, unlike_images
from .smooth import Smooth, smooth_twin

LIMIT = 1e-3  # of the spread; and of a gradient
SMOOTH_LIMIT = 1e-4  # of a gradient, where no decision can flip
NUDGE = 1e-5  # what values of fused networks differ by, see docs/zoo.md
LARGEST = 150_000_000  # parameters of a network whose gradients are compared
_NAMES = re.compile(r"'[^']*'|\[[\d, ]*\]|\([\w, -]*\d[\w, -]*\)")  # names and shapes in reasons
LIVELY = 1e-2  # the least spread over images, as a share of the largest value
_OVERFLOWING = 1e8  # values of random networks that grow from layer to layer


@dataclass
class Result:
    """What `examine` found; errors are the largest over the image sizes."""

    name: str
    sizes: tuple[int, ...]
    parameters: int
    spread: float  # over images, as a share of the largest value
    frozen_error: float
    fused_error: float
    half_error: float  # frozen in bfloat16
    autocast_error: float  # eager under autocast to bfloat16
    gradient_error: float
    eager_gradient_error: float
    gradient_jump: float
    smooth_gradient_error: float
    plans: int
    frozen: Coverage
    fused: Coverage
    eager: list[str]  # what stays eager in the frozen network, by reason, the most multiply-adds first
    saved: str  # "file", or "copy" where eager layers are between plans


def spread_over_images(values: Tensor) -> float:
    """The mean over the outputs of the range over images."""
    return (values.amax(0) - values.amin(0)).mean().item()


def examine(entry: Entry) -> Result:
    """Raises AssertionError where a network is dead, and whatever the conversion raises."""
    torch.manual_seed(0)
    model = calibrate(entry.make(), entry.sizes[-1])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    frozen = cnnfast.freeze(model, unlike_images(entry.sizes[0])[:1])
    fused = cnnfast.fuse(model, unlike_images(entry.sizes[0])[:1])
    spreads, errors = [], {"frozen": 0.0, "fused": 0.0}
    for size in entry.sizes:
        images = unlike_images(size)
        with torch.no_grad():
            wanted = model(images)
            spread = spread_over_images(wanted)
            spreads.append(spread / wanted.abs().max().item())
            assert spreads[-1] > LIVELY, (
                f"{entry.name} at {size}: the images give the same ({spreads[-1]:.1e})"
            )
            assert wanted.abs().max() < _OVERFLOWING, (
                f"{entry.name} at {size}: with random weights values grow to {wanted.abs().max():.0e}"
            )
            for kind, network in (("frozen", frozen), ("fused", fused)):
                difference = (network(images) - wanted).abs().max().item()
                errors[kind] = max(errors[kind], difference / spread)
    return Result(
        entry.name,
        entry.sizes,
        parameters,
        min(spreads),
        errors["frozen"],
        errors["fused"],
        *errors_in_bfloat16(model, entry),
        *_gradient_errors_of(fused, model, entry, parameters),
        len(frozen.plans()) if hasattr(frozen, "plans") else 1,
        frozen.report().coverage,
        fused.report().coverage,
        eager_reasons(frozen.report()),
        save_and_load(frozen, unlike_images(entry.sizes[0])),
    )


def eager_reasons(report: Report, most: int = 3) -> list[str]:
    """The most weighty reasons why layers stay eager, with how many layers of which types they concern."""
    found: dict[str, list[Row]] = {}
    for row in report.left_out:
        found.setdefault(_NAMES.sub("...", row.reason), []).append(row)
    total = sum(row.macs or 0 for row in report.rows) or 1
    weight = {reason: sum(row.macs or 0 for row in rows) / total for reason, rows in found.items()}
    lines = []
    for reason in sorted(found, key=lambda reason: (-weight[reason], -len(found[reason])))[:most]:
        types = ", ".join(sorted({row.type for row in found[reason]}))
        share = f"; {weight[reason]:.1%} of the multiply-adds" if weight[reason] >= 5e-4 else ""
        lines.append(f"{types} ({len(found[reason])}{share}): {reason}")
    return lines


def _gradient_errors_of(fused: nn.Module, model: nn.Module, entry: Entry, parameters: int) -> tuple:
    if parameters > LARGEST:
        return (float("nan"),) * 4
    images = unlike_images(entry.sizes[0])
    error = gradient_error(fused, model, images)
    if error <= LIMIT:
        return error, *(float("nan"),) * 3
    return error, *gradient_jumps(model, images), smooth_gradient_error(model, entry)


def gradient_error(fused: nn.Module, model: nn.Module, images: Tensor) -> float:
    """Largest relative difference (2-norm) of a parameter's gradient, fused from eager."""
    return largest_difference(gradients(fused, images), gradients(model, images))


def gradient_jumps(model: nn.Module, images: Tensor) -> tuple[float, float]:
    """The same of eager from float64, and of float64 at images that are NUDGE of their size away from float64
    at these: so far the gradient itself jumps, with every ReLU that a rounding error turns on or off.
    """
    double, exact_images = copy.deepcopy(model).double(), images.double()
    exact = gradients(double, exact_images)
    torch.manual_seed(0)
    nudged = exact_images + NUDGE * exact_images.abs().mean() * torch.randn_like(exact_images)
    eager = largest_difference(gradients(model, images), exact)
    return eager, largest_difference(gradients(double, nudged), exact)


def smooth_gradient_error(model: nn.Module, entry: Entry) -> float:
    """`gradient_error` of the network's twin without kinks, calibrated anew: that of the kernels alone."""
    with Smooth():
        twin = calibrate(smooth_twin(model), entry.sizes[-1])
        return gradient_error(cnnfast.fuse(twin), twin, unlike_images(entry.sizes[0]))


def gradients(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Of every parameter, for a fixed weighting of the outputs."""
    for parameter in network.parameters():
        parameter.grad = None
    y = network.eval()(images)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def largest_difference(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Relative to each gradient's 2-norm, but no less than a thousandth of the largest gradient's."""
    assert got.keys() == wanted.keys()
    largest = max(gradient.norm().item() for gradient in wanted.values())
    return max(
        (got[name] - gradient).norm().item() / max(gradient.norm().item(), 1e-3 * largest)
        for name, gradient in wanted.items()
    )


def save_and_load(frozen: nn.Module, images: Tensor) -> str:
    """A network that is one plan as a file, any other as a copy; the same numbers come back, bit for bit."""
    wanted = frozen(images)
    if isinstance(frozen, FrozenNet):
        with tempfile.TemporaryDirectory() as folder:
            path = frozen.save(Path(folder, "net.safetensors"))
            assert torch.equal(cnnfast.load(path)(images), wanted)
        return "file"
    assert torch.equal(copy.deepcopy(frozen)(images), wanted)
    return "copy"
