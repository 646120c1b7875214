"""Argument checks and shape rules of the Triton convolution and its gradients."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cnnfast.triton.nhwc import may_overlap, pixel_stride

ACTIVATIONS = ("none", "relu", "sigmoid")
PRE_ACTIVATIONS = ("none", "relu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Pixels and taps are counted in 32 bits inside the kernels (element offsets are 64-bit); the margin keeps the
# last, partly empty tile from wrapping round.
MAX_COUNT = 2**31 - 1024


class Geometry(NamedTuple):
    """Sizes of one convolution. Channels are those of one group."""

    batch: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    in_channels: int
    out_channels: int
    kernel_h: int
    kernel_w: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def pixels(self) -> int:
        return self.batch * self.out_h * self.out_w

    @property
    def taps(self) -> int:
        return self.kernel_h * self.kernel_w

    @property
    def reduction(self) -> int:
        """Summands of one output element."""
        return self.taps * self.in_channels

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.in_channels * self.groups, self.in_h, self.in_w)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.out_channels * self.groups, self.out_h, self.out_w)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels * self.groups, self.in_channels, self.kernel_h, self.kernel_w)

    @property
    def pointwise(self) -> bool:
        """1x1 without padding: every tap of every pixel lies in the image."""
        return self.taps == 1 and self.padding == (0, 0)

    def arguments(self) -> dict[str, int]:
        """By the names that the kernels give them."""
        sides = {"stride": self.stride, "pad": self.padding, "dilation": self.dilation}
        return {
            "batch": self.batch, "pixels": self.pixels, "groups": self.groups,
            "in_h": self.in_h, "in_w": self.in_w, "out_h": self.out_h, "out_w": self.out_w,
            "in_channels": self.in_channels, "out_channels": self.out_channels,
            "kernel_h": self.kernel_h, "kernel_w": self.kernel_w,
            **{f"{name}_h": vertical for name, (vertical, _) in sides.items()},
            **{f"{name}_w": horizontal for name, (_, horizontal) in sides.items()},
        }  # fmt: skip


class Prologue(NamedTuple):
    """What is done to every input element on load: input * scale[c] + shift[c], then the activation."""

    scale: Tensor | None
    shift: Tensor | None
    activation: str

    def tensors(self) -> dict[str, Tensor | None]:
        return {"pre_scale": self.scale, "pre_shift": self.shift}


def require(operator: str, condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(f"cnnfast.triton.{operator}: {message}")


def check_tensors(
    operator: str,
    images: dict[str, Tensor | None],
    per_channel: dict[str, Tensor | None],
    can_run_on_cpu: bool,
) -> None:
    """Devices, dtypes, layouts and gradients, before any shape is looked at.

    images: the tensors that must all have the first one's dtype. per_channel: parameters, which may be
    float32.
    """
    present = {name: tensor for name, tensor in (images | per_channel).items() if tensor is not None}
    first, main = next(iter(present.items()))
    for name, tensor in present.items():
        require(
            operator,
            tensor.layout == torch.strided,
            f"{name} has layout {tensor.layout}, needs a dense tensor",
        )
        require(
            operator,
            tensor.device == main.device,
            f"{name} is on {tensor.device}, but {first} is on {main.device}",
        )
        allowed = (main.dtype, torch.float32) if name in per_channel else (main.dtype,)
        require(
            operator,
            tensor.dtype in allowed,
            f"{name} has dtype {tensor.dtype}, but {first} has {main.dtype}",
        )
        require(
            operator,
            not (tensor.requires_grad and torch.is_grad_enabled()),
            f"{name} requires grad, but this kernel records no backward: call it under torch.no_grad()",
        )
    require(
        operator,
        main.dtype in DTYPES,
        f"{first} has dtype {main.dtype}, needs one of {', '.join(str(dtype) for dtype in DTYPES)}",
    )
    require(
        operator,
        main.device.type == "cuda" or (can_run_on_cpu and main.device.type == "cpu"),
        f"{first} is on {main.device}, needs a CUDA device (TRITON_INTERPRET=1 runs on the CPU)",
    )


def geometry(
    operator: str,
    input_size: Sequence[int],
    weight_size: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> Geometry:
    """The sizes of the convolution, every one of them checked."""

    def check(condition: bool, message: str) -> None:
        require(operator, condition, message)

    input_size, weight_size = tuple(input_size), tuple(weight_size)
    check(len(input_size) == 4, f"input has shape {input_size}, needs 4 dimensions (N, C, H, W)")
    check(
        len(weight_size) == 4, f"weight has shape {weight_size}, needs 4 dimensions (out, in/groups, kh, kw)"
    )
    stride, padding = _pair(check, "stride", stride, least=1), _pair(check, "padding", padding, least=0)
    dilation = _pair(check, "dilation", dilation, least=1)
    check(groups >= 1, f"groups is {groups}, needs to be at least 1")
    batch, channels, in_h, in_w = input_size
    out_channels, group_channels, kernel_h, kernel_w = weight_size
    check(batch >= 0, f"input has shape {input_size}, needs a batch of at least 0")
    check(min(channels, in_h, in_w) > 0, f"input {input_size} has no channels or no pixels")
    check(min(weight_size) > 0, f"weight {weight_size} has a dimension of size 0")
    check(
        channels == group_channels * groups,
        f"input has {channels} channels, but weight {weight_size} with groups={groups} "
        f"needs {group_channels * groups}",
    )
    check(
        out_channels % groups == 0,
        f"weight {weight_size} has {out_channels} output channels, not divisible by groups={groups}",
    )
    sizes = []
    for axis, (size, kernel) in enumerate(((in_h, kernel_h), (in_w, kernel_w))):
        padded, extent = size + 2 * padding[axis], dilation[axis] * (kernel - 1) + 1
        check(
            extent <= padded,
            f"kernel {(kernel_h, kernel_w)} with dilation {dilation} is larger than the padded input: "
            f"input {input_size}, padding {padding}",
        )
        sizes.append((padded - extent) // stride[axis] + 1)
    result = Geometry(
        batch, in_h, in_w, *sizes, group_channels, out_channels // groups, kernel_h, kernel_w,
        stride, padding, dilation, groups,
    )  # fmt: skip
    for what, count in _counts(result).items():
        check(count <= MAX_COUNT, f"{count} {what}, more than {MAX_COUNT}: split the batch or the image")
    return result


def check_shapes(operator: str, needed: Sequence[tuple[str, Tensor | None, Sequence[int]]]) -> None:
    """(name, tensor or None, the shape that it must have)"""
    for name, tensor, wanted in needed:
        if tensor is not None:
            wanted = tuple(wanted)
            require(
                operator, tensor.shape == wanted, f"{name} has shape {tuple(tensor.shape)}, needs {wanted}"
            )


def check_activation(operator: str, name: str, activation: str, allowed: Sequence[str]) -> None:
    require(operator, activation in allowed, f'{name} is "{activation}", needs one of {", ".join(allowed)}')


def check_prologue(operator: str, sizes: Geometry, prologue: Prologue) -> None:
    check_activation(operator, "pre_activation", prologue.activation, PRE_ACTIVATIONS)
    together = (prologue.scale is None) == (prologue.shift is None)
    require(operator, together, "pre_scale and pre_shift go together, but one of them is None")
    require(
        operator,
        prologue.scale is not None or prologue.activation == "none",
        f'pre_activation is "{prologue.activation}", but pre_scale and pre_shift are absent',
    )
    channels = (sizes.input_shape[1],)
    check_shapes(operator, [(name, tensor, channels) for name, tensor in prologue.tensors().items()])


def output_slice(
    operator: str,
    shape: Sequence[int],
    out: Tensor,
    offset: int,
    sources: dict[str, Tensor | None],
    may_be_out: str,
) -> Tensor:
    """The channels of `out` that the kernel writes, checked against everything that it reads.

    may_be_out: the source that may be exactly the slice that is written. The program that writes an element
    is the one that reads it there: adding in place is safe.
    """
    batch, channels, height, width = shape
    require(
        operator,
        out.dim() == 4 and (out.shape[0], out.shape[2], out.shape[3]) == (batch, height, width),
        f"out has shape {tuple(out.shape)}, needs ({batch}, at least {offset + channels}, {height}, {width})",
    )
    require(
        operator,
        0 <= offset <= out.shape[1] - channels,
        f"channels {offset} to {offset + channels} lie outside out {tuple(out.shape)}",
    )
    spacing = pixel_stride(out)
    require(
        operator,
        spacing is not None and (spacing >= out.shape[1] or out.numel() == out.shape[1]),
        f"out with shape {tuple(out.shape)} and strides {out.stride()} is not channels_last memory",
    )
    target = out.narrow(1, offset, channels)
    for name, source in sources.items():
        in_place = name == may_be_out and source is not None and _same_place(source, target)
        require(
            operator,
            source is None or in_place or not may_overlap(target, source),
            f"out channels {offset} to {offset + channels} overlap {name} in memory",
        )
    return target


def precision_of(dtype: torch.dtype, allow_tf32: bool | None) -> str:
    """ "tf32" or "ieee" for float32 products; for narrower types the word means nothing."""
    if allow_tf32 is None:
        allow_tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"
    return "ieee" if dtype == torch.float32 and not allow_tf32 else "tf32"


def _pair(check, name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    check(len(pair) == 2, f"{name} is {value}, needs one or two numbers")
    check(min(pair) >= least, f"{name} is {pair}, needs at least {least}")
    return pair


def _counts(sizes: Geometry) -> dict[str, int]:
    span = max(sizes.in_h + 2 * sizes.padding[0], sizes.in_w + 2 * sizes.padding[1])
    return {
        "output pixels": sizes.pixels,
        "input pixels": sizes.batch * sizes.in_h * sizes.in_w,
        "pixels of a padded image": (sizes.in_h + 2 * sizes.padding[0]) * (sizes.in_w + 2 * sizes.padding[1]),
        "steps over the padded input": span + max(sizes.stride),
        "weights of an output channel": sizes.reduction,
        "weights of an input channel": sizes.taps * sizes.out_channels,
    }


def _same_place(first: Tensor, second: Tensor) -> bool:
    return first.data_ptr() == second.data_ptr() and pixel_stride(first) == pixel_stride(second)
