"""The reshape that stands in front of a network for flat images."""

import torch
from torch import Tensor, nn


@torch.fx.wrap
def reshape_image(input: Tensor, channels: int, height: int, width: int) -> Tensor:
    """What ReshapeImage computes; one call in an FX graph."""
    if torch.jit.is_tracing():  # sizes are being recorded: a comparison would freeze the example's
        return input.reshape(-1, channels, height, width)
    count = channels * height * width
    if input.dim() == 4 and list(input.shape[1:]) == [channels, height, width]:
        return input
    flat = input.dim() >= 1 and input.size(-1) == count
    plane = channels == 1 and input.dim() >= 2 and list(input.shape[-2:]) == [height, width]
    if flat or plane:
        return input.reshape(-1, channels, height, width)
    raise RuntimeError(
        "ReshapeImage: input has shape "
        + str(list(input.shape))
        + ", but must be (N, "
        + str(channels)
        + ", "
        + str(height)
        + ", "
        + str(width)
        + ") or (N, "
        + str(count)
        + ")"
    )


class ReshapeImage(nn.Module):
    """Flat images (…, C·H·W), or (…, H, W) where C is 1, to (N, C, H, W), which passes as it is.

    Raises RuntimeError for any other shape, naming it: a plain view would cut it up and mix the images.

    Source: the Reshape layer of the course notes, which is `x.view(-1, 1, 28, 28)`.
    """

    def __init__(self, channels, height, width):
        super().__init__()
        self.channels = channels
        self.height = height
        self.width = width

    def forward(self, input: Tensor) -> Tensor:
        return reshape_image(input, self.channels, self.height, self.width)

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.height}, {self.width}"
