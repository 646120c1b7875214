"""Interpolation as steps."""

import operator

import torch.nn.functional as F
from torch import fx, nn

from cnnfast.fuse.number_nodes import is_size
from cnnfast.plan.lowering.context import Lowering, Unsupported, lowers, side_of
from cnnfast.plan.nodes import Interpolation, Op, fraction_word
from cnnfast.plan.steps import Step

_MODES = {
    "nearest": Interpolation.NEAREST,
    "nearest-exact": Interpolation.NEAREST_EXACT,
    "bilinear": Interpolation.BILINEAR,
}


@lowers(modules=[nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d], lines=True)
def _upsample_module(low: Lowering, layer: nn.Upsample, x: fx.Node) -> Step:
    recompute = getattr(layer, "recompute_scale_factor", None)
    return _interpolate(low, x, layer.size, layer.scale_factor, layer.mode, layer.align_corners, recompute)


@lowers(F.interpolate, lines=True)
def _interpolate(
    low: Lowering, input, size=None, scale_factor=None, mode="nearest", align_corners=None,
    recompute_scale_factor=None, antialias=False,
) -> Step:  # fmt: skip
    if low.is_line(input):
        mode = "bilinear" if mode == "linear" else mode
        size, scale_factor = _along_row(size, 1), _along_row(scale_factor, 1.0)
    if mode not in _MODES or antialias:
        raise Unsupported(f"it interpolates by '{mode}'; a plan of this version knows {', '.join(_MODES)}")
    settings = {"mode": _MODES[mode], "align_corners": int(bool(align_corners)), "height": 0, "width": 0}
    zeros = {"scale_h": fraction_word(0.0), "scale_w": fraction_word(0.0)}
    source = low.image(input)
    if size is None:
        return Step(Op.INTERPOLATE, [source], settings | _scales(scale_factor, recompute_scale_factor))
    like = _sized_like(size)
    if like is not None:
        return Step(Op.INTERPOLATE, [source, low.image(like)], settings | zeros)
    if (times := _times(size, input)) is not None:
        return Step(Op.INTERPOLATE, [source], settings | _scales(times, None))
    sizes = list(size) if isinstance(size, (tuple, list)) else [size, size]
    if not all(isinstance(s, int) for s in sizes):
        raise Unsupported(
            "its size is computed in the forward: give numbers, or x.shape[-2:] of another tensor"
        )
    return Step(Op.INTERPOLATE, [source], settings | zeros | {"height": sizes[0], "width": sizes[1]})


def _along_row(value: object, own: float) -> object:
    """A size or scale of lines as one of images of one row."""
    if value is None:
        return None
    return [own, *value] if isinstance(value, (tuple, list)) else [own, value]


def _scales(scale_factor: object, recompute: object) -> dict[str, int]:
    scales = scale_factor if isinstance(scale_factor, (tuple, list)) else [scale_factor, scale_factor]
    if not all(isinstance(s, (int, float)) and 0 < s <= 4096 for s in scales):
        raise Unsupported(f"its scale factor is {scale_factor}")
    if recompute or any(float(s) * 2**20 % 1 for s in scales):
        raise Unsupported(f"its scale factor is {scale_factor}, recomputed or no multiple of a power of two")
    return {f"scale_{axis}": fraction_word(float(s)) for axis, s in zip("hw", scales, strict=True)}


def _times(size: object, source: fx.Node) -> list[int] | None:
    """By how much a size is that of the source: (x.shape[2] * 2, x.shape[3] * 2)."""
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        return None
    times = []
    for side, dims in zip(size, ((2, -2), (3, -1)), strict=True):
        product = isinstance(side, fx.Node) and side.target is operator.mul
        factors = [factor for factor in side.args if isinstance(factor, int)] if product else []
        if len(factors) != 1 or not any(side_of(factor, dims) is source for factor in side.args):
            return None
        times += factors
    return times


def _sized_like(size: object) -> fx.Node | None:
    """The tensor whose height and width a size argument is."""
    if isinstance(size, fx.Node) and size.target is operator.getitem and is_size(size.args[0]):
        if size.args[1] in (slice(-2, None), slice(2, None), slice(2, 4)):
            return size.args[0].args[0]
    if isinstance(size, (tuple, list)) and len(size) == 2:
        sources = [side_of(s, dims) for s, dims in zip(size, ((2, -2), (3, -1)), strict=True)]
        if sources[0] is not None and sources[0] is sources[1]:
            return sources[0]
    return None
