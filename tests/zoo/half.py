"""Networks frozen in bfloat16, beside eager PyTorch under autocast."""

import torch
from torch import Tensor, nn

import cnnfast

from .networks import Entry, unlike_images

TIMES = 2.0  # so much more than autocast a frozen network may err


def errors_in_bfloat16(model: nn.Module, entry: Entry) -> tuple[float, float]:
    """Of the frozen network and of autocast: the largest difference from eager float32 relative to the spread
    over images, of all sizes.
    """
    frozen = cnnfast.freeze(model, unlike_images(entry.sizes[0])[:1], dtype=torch.bfloat16)
    errors = [_errors(model, frozen, unlike_images(size)) for size in entry.sizes]
    return max(error for error, _ in errors), max(error for _, error in errors)


@torch.no_grad()
def _errors(model: nn.Module, frozen: nn.Module, images: Tensor) -> tuple[float, float]:
    wanted = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images)
    spread = (wanted.amax(0) - wanted.amin(0)).mean().item()
    return tuple((y.float() - wanted).abs().max().item() / spread for y in (frozen(images), rounded))
