"""Transposed convolutions, and channels that become pixels or the other way round, as steps."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from cnnfast.plan.lowering.context import Lowering, Unsupported, lowers, numbers
from cnnfast.plan.nodes import Op
from cnnfast.plan.steps import Step, crop_step


@lowers(modules=[nn.ConvTranspose2d])
def _module(low: Lowering, conv: nn.ConvTranspose2d, x: fx.Node) -> Step:
    if conv.padding_mode != "zeros":
        raise Unsupported(f"padding_mode '{conv.padding_mode}' has no node in a plan of this version")
    window = (conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)
    return transposed(low, x, conv.weight, conv.bias, *window)


@lowers(F.conv_transpose2d, torch.conv_transpose2d)
def _function(
    low: Lowering, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
) -> Step:
    window = (stride, padding, output_padding, low.channel_number(groups), dilation)
    return transposed(low, input, low.tensor(weight), low.tensor(bias), *window)


def transposed(
    low: Lowering, x: fx.Node, weight: Tensor, bias: Tensor | None, stride, padding, output_padding, groups,
    dilation,
) -> Step:  # fmt: skip
    """A convolution whose output channels are the pixels of a block of stride x stride, laid out then.

    Pixel p of a block meets the kernel's positions p, p + stride, p + 2 * stride, ..., one input pixel after
    the other.
    """
    stride, padding, more, dilation = (
        numbers(value, name)
        for value, name in (
            (stride, "stride"),
            (padding, "padding"),
            (output_padding, "output_padding"),
            (dilation, "dilation"),
        )
    )
    if dilation != (1, 1) or not (groups == 1 or weight.shape[:2] == (groups, 1)):
        raise Unsupported(
            f"it is transposed, with dilation {dilation} and {groups} groups: a plan of this version knows "
            "those without dilation, of one group or of one input and output channel each"
        )
    kernel = tuple(weight.shape[2:])
    taps = tuple(-(-k // s) for k, s in zip(kernel, stride, strict=True))
    left_out = [s * t + p - k - o for s, t, p, k, o in zip(stride, taps, padding, kernel, more, strict=True)]
    if min(left_out) < 0:
        raise Unsupported("its output_padding reaches beyond what its kernel covers")
    filters = _filters(weight, stride, taps, groups)
    block = stride[0] * stride[1]
    # by place in the block first, then by channel; with groups the other way round
    bias = bias if bias is None else bias.repeat(block) if groups == 1 else bias.repeat_interleave(block)
    pads = dict.fromkeys(("pad_top", "pad_bottom"), taps[0] - 1)
    pads |= dict.fromkeys(("pad_left", "pad_right"), taps[1] - 1)
    names = ("out_channels", "group_channels", "kernel_h", "kernel_w")
    ones = dict.fromkeys(("stride_h", "stride_w", "dilation_h", "dilation_w"), 1)
    settings = {**dict(zip(names, filters.shape, strict=True)), **ones, **pads, "groups": groups}
    conv = low.place(Step(Op.CONV2D, [low.row_or_image(x)], settings, {"weight": filters, "bias": bias}))
    sides = {"top": padding[0], "left": padding[1], "bottom": left_out[0], "right": left_out[1]}
    return _depth_to_space(conv, stride, groups == 1, sides)


def _filters(weight: Tensor, stride: tuple, taps: tuple, groups: int) -> Tensor:
    """(out * block, in / groups, taps, taps) of a weight (in, out / groups, kernel, kernel)."""
    sizes = [s * t - k for s, t, k in zip(stride, taps, weight.shape[2:], strict=True)]
    whole = F.pad(weight.detach(), (0, sizes[1], 0, sizes[0]))
    parts = whole.unflatten(3, (taps[1], stride[1])).unflatten(2, (taps[0], stride[0]))
    parts = parts.flip(2, 4)  # in, out, tap, place, tap, place: later positions meet earlier pixels
    if groups == 1:
        return parts.permute(3, 5, 1, 0, 2, 4).flatten(0, 2)
    return parts.permute(0, 3, 5, 1, 2, 4).flatten(0, 2)


def _depth_to_space(source: Step, block: tuple, blocks_first: bool, sides: dict[str, int]) -> Step:
    settings = {"block_h": block[0], "block_w": block[1], "blocks_first": int(blocks_first), **sides}
    return Step(Op.DEPTH_TO_SPACE, [source], settings)


_NOTHING = {"top": 0, "left": 0, "bottom": 0, "right": 0}


@lowers(modules=[nn.PixelShuffle])
def _pixel_shuffle_module(low: Lowering, layer: nn.PixelShuffle, x: fx.Node) -> Step:
    return _pixel_shuffle(low, x, layer.upscale_factor)


@lowers(F.pixel_shuffle, torch.pixel_shuffle)
def _pixel_shuffle(low: Lowering, input, upscale_factor) -> Step:
    if not isinstance(upscale_factor, int):
        raise Unsupported("its factor is computed in the forward: write it as a number")
    return _depth_to_space(low.image(input), (upscale_factor, upscale_factor), False, _NOTHING)


@lowers(modules=[nn.PixelUnshuffle])
def _pixel_unshuffle_module(low: Lowering, layer: nn.PixelUnshuffle, x: fx.Node) -> Step:
    return _pixel_unshuffle(low, x, layer.downscale_factor)


@lowers(F.pixel_unshuffle, torch.pixel_unshuffle)
def _pixel_unshuffle(low: Lowering, input, downscale_factor) -> Step:
    if not isinstance(downscale_factor, int):
        raise Unsupported("its factor is computed in the forward: write it as a number")
    blocks = low.place(space_to_depth(low, low.image(input), downscale_factor))
    return Step(Op.CHANNEL_SHUFFLE, [blocks], {"groups": downscale_factor**2})


def space_to_depth(low: Lowering, source: Step, block: int) -> Step:
    """Blocks of pixels as channels, by place in the block first; sides are multiples of the block."""
    places = [(row, column) for row in range(block) for column in range(block)]
    parts = [crop_step(source, top=r, left=c, stride_h=block, stride_w=block) for r, c in places]
    return Step(Op.CONCAT, [low.place(part) for part in parts])
