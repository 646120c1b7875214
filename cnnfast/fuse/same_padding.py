"""Whether a forward pads an image in front of a convolution by as much as TensorFlow's SAME asks for."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.fuse.number_nodes import dimension_of, is_arithmetic, is_number

Window = tuple[int, int]  # height, width
_SIDES = {2: 0, -2: 0, 3: 1, -1: 1}
# Sizes for which padding has to be SAME's, which repeats with the stride; large ones for what a forward caps.
_TRIED = (*range(1, 130), *range(200, 600, 13), 1023, 1024, 2049, 4096)


def pads_as_same(pad: fx.Node, kernel: Window, stride: Window, dilation: Window, root: nn.Module) -> bool:
    """Whether a call of torch.nn.functional.pad gives ceil(size / stride) positions to a window.

    Just enough for them, the odd one behind, whatever the size of the image, from which alone they follow.
    """
    if not pad.args:
        return False
    image, amounts = pad.args[0], pad.args[1] if len(pad.args) > 1 else pad.kwargs.get("pad")
    if not isinstance(amounts, (tuple, list)) or len(amounts) != 4:
        return False
    try:
        return all(
            [_number_at(amount, image, (size, size + 5), root) for amount in amounts]
            == [
                *_same(size + 5, kernel[1], stride[1], dilation[1]),
                *_same(size, kernel[0], stride[0], dilation[0]),
            ]
            for size in _TRIED
        )
    except (_NotOfSizes, ArithmeticError, TypeError, ValueError, IndexError):  # whatever sizes do not fit
        return False


def same_for_all_sizes(pad: fx.Node, amount: fx.Node, root: nn.Module) -> int | None:
    """The number that one side of such padding is, where the size of the image does not matter."""
    found = {_number_at(amount, pad.args[0], (size, size + 5), root) for size in _TRIED}
    return found.pop() if len(found) == 1 else None


def window_of(conv: fx.Node, root: nn.Module) -> tuple[Window, Window, Window] | None:
    """Kernel, stride and dilation of a convolution that has numbers for them and does not pad by itself."""
    if conv.op == "call_module":
        layer = root.get_submodule(conv.target)
        plain = isinstance(layer, nn.Conv2d) and layer.padding == (0, 0)
        return (layer.kernel_size, layer.stride, layer.dilation) if plain else None
    if conv.target not in (F.conv2d, torch.conv2d) or len(conv.args) < 2:
        return None
    names = ("bias", "stride", "padding", "dilation")
    given = (
        dict(stride=1, padding=0, dilation=1) | dict(zip(names, conv.args[2:], strict=False)) | conv.kwargs
    )
    pairs = [_pair(given[name]) for name in names[1:]]
    weight = _parameter(conv.args[1], root)
    if weight is None or None in pairs or pairs[1] != (0, 0):
        return None
    return tuple(weight.shape[2:]), pairs[0], pairs[2]


def _pair(value: object) -> Window | None:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    return pair if len(pair) == 2 and all(isinstance(number, int) for number in pair) else None


def _parameter(value: object, root: nn.Module) -> torch.Tensor | None:
    if not isinstance(value, fx.Node) or value.op != "get_attr" or is_number(value):
        return None
    path, _, name = value.target.rpartition(".")
    return getattr(root.get_submodule(path), name)


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    padding = max((-(size // -stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return padding // 2, padding - padding // 2


def _number_at(value: object, image: fx.Node, size: Window, root: nn.Module) -> object:
    """What a forward makes of the size of an image. Raises _NotOfSizes."""
    if not isinstance(value, fx.Node):
        return value
    found = dimension_of(value)
    if found is not None and (parameter := _parameter(found[0], root)) is not None:
        return parameter.shape[found[1]]
    if found is not None and found[0] is image and found[1] in _SIDES:
        return size[_SIDES[found[1]]]
    if found is not None or not is_arithmetic(value) or value.kwargs:
        raise _NotOfSizes
    return value.target(*(_number_at(arg, image, size, root) for arg in value.args))


class _NotOfSizes(Exception):
    """A number that follows from more than the size of one image."""
