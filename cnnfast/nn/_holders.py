"""Child modules that hold parameters for a fused layer, and when they have to be called themselves."""

from typing import List, Tuple

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def must_be_called(module: nn.Module, kind: type) -> bool:
    """True where reading the parameters of `module` is not enough.

    A fused layer bypasses its children's forward. That is wrong for a child with hooks, and for one of
    another kind than the layer was built with (SyncBatchNorm after a conversion, a parametrised convolution).
    """
    if type(module) is not kind:
        return True
    return any(len(getattr(module, name)) > 0 for name in _HOOKS)


def check_scriptable(owner: nn.Module, **kinds: type) -> None:
    """RuntimeError where a script, which always bypasses the children, would give a wrong answer."""
    for name, kind in kinds.items():
        if must_be_called(getattr(owner, name), kind):
            raise RuntimeError(
                f"{type(owner).__name__} cannot be scripted: its child {name!r} has hooks or is no plain "
                f"{kind.__name__}. Remove them first, or use torch.jit.trace"
            )


def split_padding(conv: nn.Conv2d) -> Tuple[List[int], Tuple[int, int]]:
    """The padding of a convolution as (what torch.nn.functional.pad does first, what the operator does).

    The operator pads with zeros, equally on opposite sides; every other padding comes first. An empty list:
    nothing.
    """
    sides = [int(side) for side in conv._reversed_padding_repeated_twice]  # left, right, top, bottom
    if conv.padding_mode != "zeros":
        return sides, (0, 0)
    if not isinstance(conv.padding, str):
        return [], (conv.padding[0], conv.padding[1])
    left, right, top, bottom = sides
    if left == right and top == bottom:
        return [], (top, left)
    return sides, (0, 0)


def pad_mode(conv: nn.Conv2d) -> str:
    """The name that torch.nn.functional.pad has for the convolution's padding mode."""
    return "constant" if conv.padding_mode == "zeros" else conv.padding_mode
