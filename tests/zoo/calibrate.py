"""Weights and statistics under which signals reach the head, as those of a trained network do."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .networks import unlike_images


def calibrate(model: nn.Module, size: int) -> nn.Module:
    """Random weights of He's scale, lively scales and biases, statistics of real batches; evaluation mode."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            _fill(name, parameter)
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        _fill_norm(norm)
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        for seed in range(3):
            torch.manual_seed(seed)
            images = unlike_images(size)
            model(torch.cat([images, images.flip(-1, 1) * 0.7 + 0.3 * torch.randn_like(images)]))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return model.eval()


def _fill_norm(norm: _BatchNorm) -> None:
    """Most activations on: where half of them are off, random networks amplify rounding errors."""
    if norm.affine:
        with torch.no_grad():
            norm.weight.uniform_(0.3, 0.7)
            norm.bias.normal_(0.4, 0.1)


def _fill(name: str, parameter: torch.Tensor) -> None:
    if parameter.dim() >= 2 and parameter[0].numel() > 1:
        nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    elif name.endswith("bias"):
        parameter.normal_(0, 0.1)
    else:
        parameter.uniform_(0.5, 1.2)
