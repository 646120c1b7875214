"""Learns the kernel that finds vertical edges: [1, -1], from an image and the image of its edges alone.

python examples/edge_kernel.py
"""

import torch

from cnnfast.basics import Corr2d, corr2d

STEPS = 300
LEARNING_RATE = 0.3


def black_bar() -> torch.Tensor:
    """6×8 pixels: white, with black columns in the middle."""
    image = torch.ones(6, 8)
    image[:, 2:6] = 0
    return image


def learned(image: torch.Tensor, edges: torch.Tensor) -> Corr2d:
    """A layer that turns `image` into `edges`, by gradient descent on the mean squared error."""
    layer = Corr2d((1, 2))
    for step in range(1, STEPS + 1):
        loss = ((layer(image) - edges) ** 2).mean()
        layer.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= LEARNING_RATE * parameter.grad
        if step % 100 == 0:
            print(f"step {step}, loss {loss.item():.6f}")
    return layer


def main() -> None:
    torch.manual_seed(0)
    image = black_bar()
    edges = corr2d(image, torch.tensor([[1.0, -1.0]]))
    layer = learned(image, edges)
    left, right = layer.weight.flatten().tolist()
    print(f"kernel [{left:.3f}, {right:.3f}], bias {layer.bias.item():.3f}")


if __name__ == "__main__":
    main()
