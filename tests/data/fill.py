"""Parameters and inputs for the golden cases: no random generator, the same on every machine and version."""

import numpy as np


def uniform(index: int, count: int) -> np.ndarray:
    """`count` float64 values in [-0.5, 0.5): splitmix64 of (index << 40) + position."""
    with np.errstate(over="ignore"):
        z = (
            (np.uint64(index) << np.uint64(40))
            + np.arange(count, dtype=np.uint64)
            + np.uint64(0x9E3779B97F4A7C15)
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53 - 0.5


def tensor_values(index: int, kind: str, shape: tuple, gain: float = 1.0) -> np.ndarray:
    """Values of state_dict entry number `index` (num_batches_tracked is not counted).

    `gain` widens convolution and linear weights.
    """
    u = uniform(index, int(np.prod(shape))).reshape(shape)
    if kind == "weight" and len(shape) > 1:  # convolution or linear weight, He-uniform
        return gain * u * 2.0 * np.sqrt(6.0 / np.prod(shape[1:]))
    if kind == "weight":  # batch-norm scale
        return 1.0 + 0.4 * u
    if kind == "bias":
        return 0.2 * u
    if kind == "running_mean":
        return 0.4 * u
    if kind == "running_var":
        return 1.0 + u
    raise ValueError(kind)


def input_values(shape: tuple, salt: int = 0) -> np.ndarray:
    """A batch of images in [0, 1) that differ strongly.

    Per image and channel a wave of its own direction and length, plus noise.
    """
    n, c, h, w = shape
    y, x = np.meshgrid(np.arange(h) / h, np.arange(w) / w, indexing="ij")
    out = np.empty(shape)
    for i in range(n):
        for j in range(c):
            fy, fx, phase = uniform(2_000_000 + salt * 1000 + i * 10 + j, 3)
            wave = np.sin(2 * np.pi * (12 * fy * y + 12 * fx * x + phase))
            out[i, j] = 0.5 + (0.1 + 0.3 * (i % 2)) * wave - 0.08 * (i % 3)
    return np.clip(out + 0.1 * uniform(1_000_000 + salt, n * c * h * w).reshape(shape), 0.0, 0.999999)
