"""Argument checks and shape rules of the Triton convolution."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cnnfast.triton.nhwc import may_overlap, pixel_stride

ACTIVATIONS = ("none", "relu", "sigmoid")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Pixels and taps are counted in 32 bits inside the kernel (element offsets are 64-bit); the margin keeps the
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
    def output_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.out_channels * self.groups, self.out_h, self.out_w)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError("cnnfast.triton.conv2d: " + message)


def check_tensors(
    input: Tensor, weight: Tensor, others: dict[str, Tensor | None], can_run_on_cpu: bool
) -> None:
    """Devices, dtypes, layouts and gradients, before any shape is looked at."""
    present = {"input": input, "weight": weight} | {k: v for k, v in others.items() if v is not None}
    for name, tensor in present.items():
        require(tensor.layout == torch.strided, f"{name} has layout {tensor.layout}, needs a dense tensor")
        require(
            tensor.device == input.device, f"{name} is on {tensor.device}, but input is on {input.device}"
        )
        per_channel = name in ("bias", "scale")
        allowed = (input.dtype, torch.float32) if per_channel else (input.dtype,)
        require(tensor.dtype in allowed, f"{name} has dtype {tensor.dtype}, but input has {input.dtype}")
        require(
            not (tensor.requires_grad and torch.is_grad_enabled()),
            f"{name} requires grad, but this kernel has no backward: call it under torch.no_grad()",
        )
    require(
        input.dtype in DTYPES,
        f"input has dtype {input.dtype}, needs one of {', '.join(str(dtype) for dtype in DTYPES)}",
    )
    require(
        input.device.type == "cuda" or (can_run_on_cpu and input.device.type == "cpu"),
        f"input is on {input.device}, needs a CUDA device (TRITON_INTERPRET=1 runs on the CPU)",
    )


def geometry(
    input: Tensor,
    weight: Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> Geometry:
    """The sizes of the convolution, every one of them checked."""
    require(input.dim() == 4, f"input has shape {tuple(input.shape)}, needs 4 dimensions (N, C, H, W)")
    require(
        weight.dim() == 4,
        f"weight has shape {tuple(weight.shape)}, needs 4 dimensions (out, in/groups, kh, kw)",
    )
    stride, padding = _pair("stride", stride, least=1), _pair("padding", padding, least=0)
    dilation = _pair("dilation", dilation, least=1)
    require(groups >= 1, f"groups is {groups}, needs to be at least 1")
    batch, channels, in_h, in_w = input.shape
    out_channels, group_channels, kernel_h, kernel_w = weight.shape
    require(min(channels, in_h, in_w) > 0, f"input {tuple(input.shape)} has no channels or no pixels")
    require(min(weight.shape) > 0, f"weight {tuple(weight.shape)} has a dimension of size 0")
    require(
        channels == group_channels * groups,
        f"input has {channels} channels, but weight {tuple(weight.shape)} with groups={groups} "
        f"needs {group_channels * groups}",
    )
    require(
        out_channels % groups == 0,
        f"weight {tuple(weight.shape)} has {out_channels} output channels, not divisible by groups={groups}",
    )
    sizes = []
    for axis, (size, kernel) in enumerate(((in_h, kernel_h), (in_w, kernel_w))):
        padded, extent = size + 2 * padding[axis], dilation[axis] * (kernel - 1) + 1
        require(
            extent <= padded,
            f"kernel {(kernel_h, kernel_w)} with dilation {dilation} is larger than the padded input: "
            f"input {tuple(input.shape)}, padding {padding}",
        )
        sizes.append((padded - extent) // stride[axis] + 1)
    result = Geometry(
        batch, in_h, in_w, *sizes, group_channels, out_channels // groups, kernel_h, kernel_w,
        stride, padding, dilation, groups,
    )  # fmt: skip
    _check_counts(result)
    return result


def check_epilogue(
    sizes: Geometry, bias: Tensor | None, scale: Tensor | None, residual: Tensor | None, activation: str
) -> None:
    shape = sizes.output_shape
    needed = (("bias", bias, shape[1:2]), ("scale", scale, shape[1:2]), ("residual", residual, shape))
    for name, tensor, wanted in needed:
        if tensor is not None:
            require(tensor.shape == wanted, f"{name} has shape {tuple(tensor.shape)}, needs {wanted}")
    require(activation in ACTIVATIONS, f'activation is "{activation}", needs one of {", ".join(ACTIVATIONS)}')


def output_slice(sizes: Geometry, out: Tensor, offset: int, sources: dict[str, Tensor | None]) -> Tensor:
    """The channels of `out` that the kernel writes, checked against everything that it reads."""
    batch, channels, out_h, out_w = sizes.output_shape
    require(
        out.dim() == 4 and (out.shape[0], out.shape[2], out.shape[3]) == (batch, out_h, out_w),
        f"out has shape {tuple(out.shape)}, needs ({batch}, at least {offset + channels}, {out_h}, {out_w})",
    )
    require(
        0 <= offset <= out.shape[1] - channels,
        f"channels {offset} to {offset + channels} lie outside out {tuple(out.shape)}",
    )
    spacing = pixel_stride(out)
    require(
        spacing is not None and (spacing >= out.shape[1] or out.numel() == out.shape[1]),
        f"out with shape {tuple(out.shape)} and strides {out.stride()} is not channels_last memory",
    )
    target = out.narrow(1, offset, channels)
    for name, source in sources.items():
        # The program that writes an element is the one that reads its residual: adding in place is safe.
        in_place = name == "residual" and source is not None and _same_place(source, target)
        require(
            source is None or in_place or not may_overlap(target, source),
            f"out channels {offset} to {offset + channels} overlap {name} in memory",
        )
    return target


def _pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    require(len(pair) == 2, f"{name} is {value}, needs one or two numbers")
    require(min(pair) >= least, f"{name} is {pair}, needs at least {least}")
    return pair


def _check_counts(sizes: Geometry) -> None:
    span = max(sizes.in_h + 2 * sizes.padding[0], sizes.in_w + 2 * sizes.padding[1])
    counts = {
        "output pixels": sizes.pixels,
        "pixels of a padded image": (sizes.in_h + 2 * sizes.padding[0]) * (sizes.in_w + 2 * sizes.padding[1]),
        "steps over the padded input": span + max(sizes.stride),
        "weights of an output channel": sizes.reduction,
    }
    for what, count in counts.items():
        require(count <= MAX_COUNT, f"{count} {what}, more than {MAX_COUNT}: split the batch or the image")


def _same_place(first: Tensor, second: Tensor) -> bool:
    return first.data_ptr() == second.data_ptr() and pixel_stride(first) == pixel_stride(second)
