"""What generated forwards call to follow settings of layers that a fused call has as words.

See runtime.py.
"""

import torch


def activation_with(text: str, then: list[float], now: list[float]) -> str:
    """An activation with the numbers that its layer has now; text: with those that it had then.

    A script cannot write numbers without loss, so that it takes those of its beginning alone.
    """
    if now == then:
        return text
    if torch.jit.is_scripting():
        raise RuntimeError("the numbers of an activation changed since the network was fused: fuse it anew")
    return _written(text, now)


@torch.jit.unused
def _written(text: str, numbers: list[float]) -> str:
    """By a format, which torch.compile can write down; it has no repr()."""
    name = text.partition("(")[0]
    return f"{name}({', '.join([f'{number}' for number in numbers])})"


def both_sides(size: int) -> list[int]:
    """A setting that was one number for both sides when it was fused; it may be a pair by now."""
    if torch.jit.is_scripting():
        return [size, size]
    return _sides(size)


@torch.jit.unused
def _sides(size: int) -> list[int]:
    return list(size) if isinstance(size, (tuple, list)) else [size, size]


def gelu(approximate: str) -> str:
    """The activation that nn.GELU is."""
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def mode_as_fused(mode: str, then: str) -> str:
    """torch.nn.functional.pad's name for a padding mode, which must be the one that was fused."""
    if mode != then:
        raise RuntimeError(
            "a convolution's padding_mode was '" + then + "' when it was fused and is '" + mode + "' now: "
            "take network = fused.unfuse(), set it there, and call cnnfast.fuse(network) again"
        )
    return "constant" if then == "zeros" else then


def zeros_around(padding: list[int], mode: str) -> list[int]:
    """A padding with zeros, whose mode must still say so."""
    if mode != "zeros":
        mode_as_fused(mode, "zeros")
    return padding
