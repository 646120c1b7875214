"""Random changes of training images: flip, crop and colour, a whole batch at a time.

Source: course notes on AlexNet; Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep
convolutional neural networks", section 4.1. The notes leave the strengths open.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

MARGIN = 1 / 8  # of height and width: how far a crop may lie outside the image
BRIGHTNESS = CONTRAST = 0.2
COLOUR = 0.1  # weaker: with one channel it is a second change of brightness


class FlipCropColour:
    """Called with images (n×C×H×W in [0, 1]) and a generator: as many changed images of the same shape.

    Each image is mirrored or not, shifted by up to `MARGIN` of its size (a crop of the image with a black
    margin, so that objects keep their size), and made brighter or darker, of more or less contrast and of
    another weight per channel, then clipped to [0, 1].

    Where a batch is shared among `processes`, each of them draws the numbers of the whole batch and takes its
    own: every image changes as it would in a single process, and the generators stay the same.
    """

    def __init__(self, rank: int = 0, processes: int = 1):
        self._rank = rank
        self._processes = processes

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        channels = images.shape[1]
        whole = torch.rand(len(images) * self._processes, 5 + channels, generator=generator)
        flip, down, right, brightness, contrast, colour = (
            whole[self._rank :: self._processes].to(images.device).split((1, 1, 1, 1, 1, channels), dim=1)
        )
        changed = torch.where(_per_image(flip < 0.5), images.flip(3), images)
        changed = cropped(changed, down.squeeze(1), right.squeeze(1))
        return coloured(
            changed,
            _per_image(1 + BRIGHTNESS * (2 * brightness - 1)),
            _per_image(1 + CONTRAST * (2 * contrast - 1)),
            _per_image(1 + COLOUR * (2 * colour - 1)),
        )


def cropped(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """A crop of each image's own size, out of the image with a black margin.

    Args:
        images: n×C×H×W.
        down, right: n numbers in [0, 1): 0 is the crop at the upper or left end, 0.5 the image itself.
    """
    height, width = images.shape[2:]
    above, left = round(MARGIN * height), round(MARGIN * width)
    margin = F.pad(images, (left, left, above, above))
    crops = margin.unfold(2, height, 1).unfold(3, width, 1)  # views: n, C, place, place, H, W
    places = ((down * (2 * above + 1)).long(), (right * (2 * left + 1)).long())
    return crops[torch.arange(len(images), device=images.device), :, places[0], places[1]]


def coloured(images: Tensor, brightness: Tensor, contrast: Tensor, colour: Tensor) -> Tensor:
    """clip((contrast * (b - mean(b)) + mean(b)) * colour) with b = brightness * images, mean per image.

    Args:
        images: n×C×H×W; brightness, contrast: n×1×1×1; colour: n×C×1×1.
    """
    mean = images.mean((1, 2, 3), keepdim=True)
    scale = brightness * contrast * colour
    shift = brightness * (1 - contrast) * mean * colour
    return torch.addcmul(shift, images, scale).clamp_(0, 1)


def _per_image(numbers: Tensor) -> Tensor:
    return numbers[:, :, None, None]
