"""One network through freeze and fuse: errors relative to the spread over images, coverage, files."""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import cnnfast
from cnnfast.freeze import FrozenNet
from cnnfast.report import Coverage

from .calibrate import calibrate
from .networks import Entry, unlike_images

LIMIT = 1e-3  # of the spread
NUDGE = 1e-5  # what values of fused networks differ by, see docs/zoo.md
_LARGEST = 150_000_000  # parameters of a network whose gradients are compared
LIVELY = 1e-2  # the least spread over images, as a share of the largest value


@dataclass
class Result:
    """What `examine` found; errors are the largest over the image sizes."""

    name: str
    sizes: tuple[int, ...]
    parameters: int
    spread: float  # over images, as a share of the largest value
    frozen_error: float
    fused_error: float
    gradient_error: float
    eager_gradient_error: float
    gradient_jump: float
    plans: int
    frozen: Coverage
    fused: Coverage
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
        *_gradient_errors_of(fused, model, entry, parameters),
        len(frozen.plans()) if hasattr(frozen, "plans") else 1,
        frozen.report().coverage,
        fused.report().coverage,
        save_and_load(frozen, unlike_images(entry.sizes[0])),
    )


def _gradient_errors_of(fused: nn.Module, model: nn.Module, entry: Entry, parameters: int) -> tuple:
    if parameters > _LARGEST:
        return float("nan"), float("nan"), float("nan")
    return gradient_errors(fused, model, unlike_images(entry.sizes[0]))


def gradient_errors(fused: nn.Module, model: nn.Module, images: Tensor) -> tuple[float, float, float]:
    """Largest relative difference of a parameter's gradient: fused from eager, eager from float64, and
    float64's at images that are NUDGE of their size away from float64's at these.

    The last two are computed where the first is above LIMIT: so much of it is float32's, and so far the
    gradient itself jumps, with every ReLU that a rounding error turns on or off.
    """
    got, wanted = _gradients(fused, images), _gradients(model, images)
    error = _largest_difference(got, wanted)
    if error <= LIMIT:
        return error, float("nan"), float("nan")
    double, exact_images = copy.deepcopy(model).double(), images.double()
    exact = _gradients(double, exact_images)
    torch.manual_seed(0)
    nudged = exact_images + NUDGE * exact_images.abs().mean() * torch.randn_like(exact_images)
    return error, _largest_difference(wanted, exact), _largest_difference(_gradients(double, nudged), exact)


def _gradients(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    for parameter in network.parameters():
        parameter.grad = None
    y = network.eval()(images)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def _largest_difference(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
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
