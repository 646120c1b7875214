"""Weights and inputs for a benchmark: seeded, non-zero, no denormals, images that differ strongly."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn


def fill_weights(model: nn.Module, gain: float = 1.0, seed: int = 0) -> None:
    """Fills parameters and batch-norm statistics in place so that signals keep their size through depth.

    He-uniform weights (He et al. 2015, arXiv:1502.01852) times `gain`; scales near 1, small biases, running
    statistics away from 0 and 1 so that folding them wrongly shows. Other entries keep their initial values.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            centre, width = _centre_and_width(key.rpartition(".")[2], value, gain)
            if width:
                value.uniform_(centre - width / 2, centre + width / 2, generator=generator)


def take_statistics(model: nn.Module, batch: Tensor) -> None:
    """Sets the running statistics of every batch norm to those of a batch, as training would.

    Under statistics that are not its own a network of fifty layers gives all images the same answer.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches, here one
        norm.train()
    with torch.no_grad():
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _centre_and_width(kind: str, value: Tensor, gain: float) -> tuple[float, float]:
    if kind == "weight" and value.ndim > 1:
        return 0.0, gain * 2.0 * math.sqrt(6.0 / max(1, value[0].numel()))
    if kind == "weight":
        return 1.0, 0.4
    if kind == "bias":
        return 0.0, 0.2
    if kind == "running_mean":
        return 0.0, 0.4
    if kind == "running_var":
        return 1.0, 1.0
    return 0.0, 0.0


def images(batch: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """A float32 batch in (0, 1): per image and channel a wave of its own direction and length, plus noise."""
    channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    fy, fx, phase = (torch.rand(3, batch, channels, 1, 1, generator=generator) - 0.5) * 12.0
    y = torch.arange(height).view(1, 1, -1, 1) / height
    x = torch.arange(width).view(1, 1, 1, -1) / width
    image = (torch.arange(batch) + seed).view(-1, 1, 1, 1)  # batches of one image differ as well
    waves = torch.sin(2 * math.pi * (fy * y + fx * x + phase / 12.0))
    noise = 0.1 * (torch.rand(batch, channels, height, width, generator=generator) - 0.5)
    values = 0.5 + (0.1 + 0.3 * (image % 2)) * waves - 0.08 * (image % 3) + noise
    return values.clamp_(1e-3, 1.0 - 1e-3)


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads a .safetensors or a torch.save file of plain tensors; unpickles no code."""
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
