"""Slices of channels, channel shuffles, permutations, and other shapes of the same values, as steps."""

import math
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.fuse.pieces import of_number
from cnnfast.plan.lowering.context import Lowering, Respelled, Unsupported, Value, lowers
from cnnfast.plan.lowering.pixels import gives_one_pixel
from cnnfast.plan.lowering.transposed import space_to_depth
from cnnfast.plan.nodes import Op
from cnnfast.plan.steps import Step, crop_step

_ALL = slice(None)


def _slice(source: Step, first: int, channels: int) -> Step:
    return Step(Op.SLICE, [source], {"first": first, "channels": channels})


@lowers(torch.chunk, methods=["chunk"], lines=True)
def _chunk(low: Lowering, input, chunks, dim=0) -> Value:
    channels = _channels_along(low, input, dim)
    size = -(-channels // low.channel_number(chunks))
    return _pieces(low, input, [min(size, channels - at) for at in range(0, channels, size)], dim)


@lowers(torch.split, methods=["split"], lines=True)
def _split(low: Lowering, tensor, split_size_or_sections, dim=0, **named) -> Value:
    sections = named.get("split_size", split_size_or_sections)
    channels = _channels_along(low, tensor, dim)
    if isinstance(sections, (list, tuple)):
        return _pieces(low, tensor, [low.channel_number(size) for size in sections], dim)
    size = low.channel_number(sections)
    return _pieces(low, tensor, [min(size, channels - at) for at in range(0, channels, size)], dim)


@lowers(of_number)
def _of_number(low: Lowering, pieces, number) -> Value:
    found = low.value(pieces)
    if not isinstance(found, list) or len(found) != number:
        raise Unsupported(f"it loops over other than {number} pieces")
    return found


def _channels_along(low: Lowering, x: fx.Node, dim: object) -> int:
    """How many channels a cut of dimension dim divides."""
    return low.shape(x)[-1 if _is_last_channels(low, x, dim) else 1]


def _is_last_channels(low: Lowering, x: fx.Node, dim: object) -> bool:
    found = low.value(x)
    return isinstance(found, Respelled) and found.kind == "nhwc" and dim in (3, -1)


def _pieces(low: Lowering, x: fx.Node, sizes: list[int], dim: object) -> list[Value]:
    rank = len(low.shape(x))
    if _is_last_channels(low, x, dim):
        if sum(sizes) != low.shape(x)[-1] or min(sizes) < 1:
            raise Unsupported(f"it cuts {low.shape(x)[-1]} channels into {sizes}")
        source = low.value(x).step
        return [Respelled("nhwc", _slice(source, sum(sizes[:i]), size)) for i, size in enumerate(sizes)]
    if dim not in (1, 1 - rank) or not (rank in (2, 4) or low.is_line(x)):
        raise Unsupported(f"it cuts dimension {dim}; a plan of this version cuts channels (1) only")
    source = low.step(x)
    _check_plain_features(source, rank)
    if sum(sizes) != low.shape(x)[1] or min(sizes) < 1:
        raise Unsupported(f"it cuts {low.shape(x)[1]} channels into {sizes}")
    return [_slice(source, sum(sizes[:i]), size) for i, size in enumerate(sizes)]


def _check_plain_features(source: Step, rank: int) -> None:
    if rank == 2 and source.op is not Op.LINEAR:
        raise Unsupported("a plan of this version cuts features right behind a linear layer only")


@lowers(torch.narrow, methods=["narrow"], lines=True)
def _narrow(low: Lowering, input, dim, start, length) -> Value:
    if dim not in (1, 1 - len(low.shape(input))) or not isinstance(start, int):
        raise Unsupported("a plan of this version narrows channels (1) only, to fixed numbers")
    return _slice(low.image(input), start, low.channel_number(length))


@lowers(operator.getitem)
def _getitem(low: Lowering, source, index) -> Value:
    found = low.value(source)
    if isinstance(found, list):
        if not isinstance(index, int) or not -len(found) <= index < len(found):
            raise Unsupported(f"it asks for part {index} of what a plan has {len(found)} of")
        return found[index]
    index = (index,) if not isinstance(index, tuple) else index
    shape = low.shape(source)
    index = tuple(_without_ellipsis(index, len(shape)))
    if len(shape) == 2 and index == (_ALL, _ALL, None, None):
        return _respell(low, source, [*shape, 1, 1])
    if len(shape) == 4 and index == (_ALL, _ALL, 0, 0) and shape[2:] == [1, 1]:
        return _respell(low, source, shape[:2])
    if low.is_line(source) and index and index[0] == _ALL and len(index) <= 3:
        return _sliced_line(low, source, [*index, *[_ALL] * (3 - len(index))])
    if len(shape) != 4 or not index or index[0] != _ALL:
        raise Unsupported("a plan of this version takes slices of an image's channels, x[:, a:b], only")
    return _sliced_image(low, source, [*index, *[_ALL] * (4 - len(index))])


def _without_ellipsis(index: tuple, rank: int) -> tuple:
    for at, item in enumerate(index):
        if item is Ellipsis:
            missing = rank - sum(other is not None for other in index) + 1
            return (*index[:at], *[_ALL] * missing, *index[at + 1 :])
    return index


def _sliced_image(low: Lowering, source: fx.Node, index: list[object]) -> Value:
    _, channel, row, column = index
    if channel == _ALL and row == column and isinstance(row, slice):
        step = row.step
        if row == slice(None, None, step) and isinstance(step, int) and step > 0:
            return _every(low.image(source), step)
    if row != _ALL or column != _ALL:
        if channel != _ALL:
            raise Unsupported("it takes some channels and some pixels at once: write two slices")
        return _cropped(low.image(source), row, column)
    channels = low.shape(source)[1]
    if isinstance(channel, int):
        at = channel % channels
        return Respelled("plane", _slice(low.image(source), at, 1))
    if not isinstance(channel, slice) or channel.step not in (None, 1):
        raise Unsupported("it takes channels that do not lie side by side")
    ends = [None if end is None else low.channel_number(end) for end in (channel.start, channel.stop)]
    first, last, _ = slice(*ends).indices(channels)
    if last <= first:
        raise Unsupported(f"it takes no channel out of {channels}")
    return low.step(source) if last - first == channels else _slice(low.image(source), first, last - first)


def _sliced_line(low: Lowering, source: fx.Node, index: list[object]) -> Value:
    """Some channels of a line, or what is left of it without fixed numbers at its ends."""
    _, channel, column = index
    if column != _ALL:
        if channel != _ALL:
            raise Unsupported("it takes some channels and some positions at once: write two slices")
        return Respelled("line", _cropped(low.line(source), _ALL, column))
    if not isinstance(channel, slice) or channel.step not in (None, 1):
        raise Unsupported("it takes channels that do not lie side by side")
    channels = low.shape(source)[1]
    ends = [None if end is None else low.channel_number(end) for end in (channel.start, channel.stop)]
    first, last, _ = slice(*ends).indices(channels)
    if last <= first:
        raise Unsupported(f"it takes no channel out of {channels}")
    return Respelled("line", _slice(low.line(source), first, last - first))


def _cropped(source: Step, row: object, column: object) -> Step:
    """x[:, :, a:-b:s, c:-d:t]: what is left out on each side does not depend on the size of the image."""
    cuts: dict[str, int] = {}
    for part, begin, end, axis in ((row, "top", "bottom", "h"), (column, "left", "right", "w")):
        if not isinstance(part, slice):
            raise Unsupported("it takes one row or column out of an image: a plan keeps images")
        first, last, step = part.start or 0, part.stop or 0, 1 if part.step is None else part.step
        fixed = all(isinstance(number, int) for number in (first, last, step))
        if not fixed or first < 0 or last > 0 or step < 1 or (part.stop is not None and last == 0):
            raise Unsupported(
                "it takes pixels up to a fixed row or column, or counts from the end: a plan of this version "
                "leaves out fixed numbers on each side, x[:, :, a:-b, c:-d]"
            )
        cuts |= {begin: first, end: -last, f"stride_{axis}": step}
    return crop_step(source, **cuts)


def _every(source: Step, step: int) -> Step:
    """Every step-th row and column: a pooling whose window is one pixel."""
    ones = {"kernel_h": 1, "kernel_w": 1, "dilation_h": 1, "dilation_w": 1}
    settings = {**ones, "stride_h": step, "stride_w": step, "pad_h": 0, "pad_w": 0, "ceil_mode": 0}
    return Step(Op.MAX_POOL2D, [source], settings)


@lowers(modules=[nn.ChannelShuffle], lines=True)
def _channel_shuffle_module(low: Lowering, layer: nn.ChannelShuffle, x: fx.Node) -> Value:
    return _channel_shuffle(low, x, layer.groups)


@lowers(F.channel_shuffle, torch.channel_shuffle, lines=True)
def _channel_shuffle(low: Lowering, input, groups) -> Value:
    return Step(Op.CHANNEL_SHUFFLE, [low.image(input)], {"groups": low.channel_number(groups)})


@lowers(torch.permute, methods=["permute"])
def _permute(low: Lowering, input, *dims) -> Value:
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    rank = len(low.shape(input))
    order = [d % rank for d in order]
    found = low.value(input)
    kind = found.kind if isinstance(found, Respelled) else ""
    if order == list(range(rank)):
        return found
    if isinstance(found, Step) and order == [0, 2, 3, 1]:
        return Respelled("nhwc", found)
    if kind == "nhwc" and order == [0, 3, 1, 2]:
        return found.step
    if order == [0, 2, 1, 3, 4] and kind in ("grouped", "shuffled"):
        return _exchanged(found)
    if kind == "blocks" and order == [0, 3, 5, 1, 2, 4]:
        return Respelled("depth", found.step, found.groups)
    if kind in ("vector", "attention") and _keeps_order(low.shape(input), order):
        return found
    raise Unsupported(
        f"it permutes to {order}; a plan of this version knows channels last (0, 2, 3, 1), back from there, "
        "and channel shuffles"
    )


@lowers(torch.transpose, torch.swapaxes, methods=["transpose", "swapaxes"])
def _transpose(low: Lowering, input, dim0, dim1) -> Value:
    rank = len(low.shape(input))
    order = list(range(rank))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permute(low, input, order)


def _keeps_order(shape: list[int], order: list[int]) -> bool:
    """Whether a permutation moves nothing but the batch's followers of size 1."""
    moved = [d for d in order[1:] if shape[d] != 1]
    return order[0] == 0 and moved == sorted(moved)


def _exchanged(value: Respelled) -> Respelled:
    return Respelled("shuffled" if value.kind == "grouped" else "grouped", value.step, value.groups)


def reshaped(low: Lowering, x: fx.Node, shape: list[int]) -> Value | None:
    """The value of x in the shape that a view gives it; None where this is none of ours."""
    found, before = low.value(x), low.shape(x)
    if isinstance(found, list):
        return None
    if isinstance(found, Respelled) and found.kind == "vector":
        found, before = found.step, [before[0], math.prod(before[1:]), 1, 1]
    if isinstance(found, Step) and len(before) == 4:
        n, channels, height, width = before
        if len(shape) == 5 and [shape[0], *shape[3:]] == [n, height, width]:
            if shape[1] * shape[2] == channels:
                return Respelled("grouped", found, shape[1])
        block = shape[3] if len(shape) == 6 else 0
        if block > 1 and shape == [n, channels, height // block, block, width // block, block]:
            return Respelled("blocks", found, block)
        if shape == [n, channels, height * width] and not gives_one_pixel(found):
            return Respelled("pixels", found)
    if isinstance(found, Respelled) and found.kind == "depth":
        whole = [before[0], before[1] * before[2] * before[3], *before[4:]]
        return space_to_depth(low, found.step, found.groups) if shape == whole else None
    if isinstance(found, Respelled) and len(shape) == 4 and found.kind in ("grouped", "shuffled"):
        if shape != [before[0], before[1] * before[2], *before[3:]]:
            return None
        if found.kind == "grouped":
            return found.step
        return Step(Op.CHANNEL_SHUFFLE, [found.step], {"groups": found.groups})
    return _respell(low, x, shape)


def _respell(low: Lowering, x: fx.Node, shape: list[int]) -> Value | None:
    """The channels of one pixel in any shape; (N, C) and (N, C, 1, 1) are shapes that other layers take."""
    found, before = low.value(x), low.shape(x)
    if isinstance(found, list):
        return None
    if isinstance(found, Respelled) and found.kind not in ("vector", "grouped", "line"):
        return None
    step = found.step if isinstance(found, Respelled) else found
    if not gives_one_pixel(step) or shape[:1] != before[:1] or math.prod(shape) != math.prod(before):
        return None
    is_image = len(before) == 4 or isinstance(found, Respelled)
    if step.op is Op.INPUT and len(shape) == 4 and shape[2:] != [1, 1]:
        return None  # images out of rows: see shapes.py
    if len(shape) == 2:
        return Step(Op.FLATTEN, [step]) if is_image else step
    if not is_image:
        step = low.place(Step(Op.TO_IMAGE, [step]))
    return step if len(shape) == 4 and shape[2:] == [1, 1] else Respelled("vector", step)


_UNSQUEEZED = (("pixels", 1), ("attention", 3), ("attention", -1))


@lowers(torch.unsqueeze, methods=["unsqueeze"])
def _unsqueeze(low: Lowering, input, dim) -> Value:
    found = low.value(input)
    if isinstance(found, Respelled) and found.kind == "plane" and dim in (1, -3):
        return found.step
    if low.is_line(input) and dim in (2, -2):
        return found.step
    if isinstance(found, Respelled) and (found.kind, dim) in _UNSQUEEZED and len(low.shape(input)) == 3:
        return found
    if dim % (len(low.shape(input)) + 1) == 0:
        raise Unsupported("it puts a dimension in front of the batch")
    return _required(low, _respell(low, input, list(low.shapes[low.node])))


@lowers(torch.squeeze, methods=["squeeze"])
def _squeeze(low: Lowering, input, dim=None) -> Value:
    rank = len(low.shape(input))
    dims = dim if isinstance(dim, (tuple, list)) else [dim]
    found = low.value(input)
    first = 1 if isinstance(found, Respelled) and found.kind == "vector" else 2
    if any(d is None or d % rank < first for d in dims):
        raise Unsupported("it drops all dimensions of size 1, perhaps the batch: use flatten(1)")
    return _required(low, _respell(low, input, list(low.shapes[low.node])))


def _required(low: Lowering, value: Value | None) -> Value:
    if value is None:
        raise Unsupported("a plan of this version adds and drops dimensions of (N, C, 1, 1) only")
    return value
