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


_SETTINGS = {
    nn.Conv2d: ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    nn.AvgPool2d: (
        "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
    ),
}  # fmt: skip


def settings_of(module: nn.Module) -> Tuple:
    """Kind and settings of a layer; a fused layer keeps them, as it reads some when it is built."""
    kind = next(kind for kind in _SETTINGS if isinstance(module, kind))
    return (kind, *[getattr(module, name) for name in _SETTINGS[kind]])


def is_as_built(module: nn.Module, settings: Tuple) -> bool:
    """Whether reading the parameters of `module` is enough: no hooks, and the settings of the beginning."""
    kind = settings[0]
    if must_be_called(module, kind):
        return False
    return [getattr(module, name) for name in _SETTINGS[kind]] == list(settings[1:])


def check_scriptable(owner: nn.Module, **children: object) -> None:
    """RuntimeError where a script, which always bypasses the children, would give a wrong answer.

    children: by path, the kind that a child must have, or all its settings.
    """
    for name, expected in children.items():
        child = owner.get_submodule(name)
        settings = expected if isinstance(expected, tuple) else None
        kind = expected[0] if settings else expected
        if must_be_called(child, kind) or (settings and not is_as_built(child, settings)):
            raise RuntimeError(
                f"{type(owner).__name__} cannot be scripted: its child {name!r} has hooks, settings other "
                f"than at first, or is no plain {kind.__name__}. Undo that, or use torch.jit.trace"
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
