"""Every kernel, class of shapes and type that is compiled to look at its machine code."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from cnnfast.triton import conv2d, conv2d_input_grad, conv2d_weight_grad, statistics
from cnnfast.triton.conv2d_arguments import Geometry
from cnnfast.triton.signature import Signature
from cnnfast.triton.tiles import (
    MACHINES,
    Access,
    Product,
    Tile,
    candidates,
    choose_tile,
    forward_product,
    input_grad_product,
    weight_grad_product,
)

# Type and how float32 is multiplied: on tensor cores with 10-bit mantissas, or as it is.
TYPES = {
    "float16": (torch.float16, "tf32"),
    "bfloat16": (torch.bfloat16, "tf32"),
    "tf32": (torch.float32, "tf32"),
    "float32": (torch.float32, "ieee"),
}


def conv(size: int, channels: int, out_channels: int, kernel: int, stride: int = 1) -> Geometry:
    padding = kernel // 2
    out = (size + 2 * padding - kernel) // stride + 1
    return Geometry(
        *(32, size, size, out, out, channels, out_channels, kernel, kernel),
        *((stride, stride), (padding, padding), (1, 1), 1),
    )


# Layers of ResNet-50 at batch 32 (the pointwise one widens the first stage), and one whose channels allow no
# 16-byte access.
POINTWISE = conv(56, 64, 256, 1)
WIDE = conv(28, 128, 128, 3)
WIDE_STRIDED = conv(56, 128, 128, 3, stride=2)
FIRST = conv(224, 3, 64, 7, stride=2)
ODD = conv(14, 37, 53, 3)
ODD_STRIDED = conv(14, 37, 53, 3, stride=2)


class Class(NamedTuple):
    """A kernel and a class of shapes: a layer to choose the tile for, whether it is aligned, options."""

    signature: Callable[..., Signature]
    product: Callable[[Geometry], Product]
    sizes: Geometry
    aligned: bool
    options: dict[str, object]

    @property
    def prologue(self) -> bool:
        return bool(self.options.get("prologue"))


def forward(sizes: Geometry, aligned: bool = True, **options) -> Class:
    return Class(conv2d.signature, forward_product, sizes, aligned, options)


def input_grad(sizes: Geometry, aligned: bool = True, **options) -> Class:
    return Class(conv2d_input_grad.signature, input_grad_product, sizes, aligned, options)


def weight_grad(sizes: Geometry, aligned: bool = True, **options) -> Class:
    return Class(conv2d_weight_grad.signature, weight_grad_product, sizes, aligned, options)


EPILOGUE = {"bias": True, "scale": True, "residual": True, "activation": "relu"}
CLASSES = {
    "conv2d/pointwise": forward(POINTWISE, pointwise=True, **EPILOGUE),
    "conv2d/pointwise_training": forward(POINTWISE, pointwise=True, prologue=True, with_statistics=True),
    "conv2d/wide": forward(WIDE, **EPILOGUE),
    "conv2d/wide_training": forward(WIDE, with_statistics=True),
    "conv2d/first_training": forward(FIRST, aligned=False, across_taps=True, with_statistics=True),
    "conv2d/odd": forward(ODD, aligned=False, prologue=True, with_statistics=True, **EPILOGUE),
    "input_grad/pointwise": input_grad(POINTWISE, pointwise=True, pre_relu=True),
    "input_grad/wide": input_grad(WIDE, residual=True),
    "input_grad/wide_strided": input_grad(WIDE_STRIDED, strided=True),
    "input_grad/odd": input_grad(ODD_STRIDED, aligned=False, strided=True, residual=True, pre_relu=True),
    "weight_grad/pointwise": weight_grad(POINTWISE, pointwise=True, prologue=True),
    "weight_grad/wide": weight_grad(WIDE),
    "weight_grad/first": weight_grad(FIRST, aligned=False, across_taps=True),
    "weight_grad/odd": weight_grad(ODD, aligned=False, prologue=True),
}
# bfloat16 differs from float16 in one word of one instruction: these classes stand for all.
BFLOAT16_CLASSES = ("conv2d/wide_training", "input_grad/wide_strided", "weight_grad/wide")
# The default test run compiles these alone: an instruction set with asynchronous products and one without,
# operands that go through registers, a result that is finished in halves.
SHORT = {
    f"{name}/{kind}/sm_{capability}"
    for name, kind, capability in (
        ("conv2d/pointwise_training", "float16", 90),
        ("conv2d/wide", "tf32", 80),
        ("input_grad/wide_strided", "bfloat16", 80),
        ("weight_grad/wide", "float16", 90),
        ("weight_grad/wide", "tf32", 90),
        ("conv2d/wide", "tf32", 100),
    )
} | {"statistics/last/float32/sm_90", "sum_parts/aligned/float16/sm_80"}


class Variant(NamedTuple):
    name: str
    capability: int
    signature: Signature
    tile: Tile | None
    shared_reckoned: int | None


def variants() -> Iterator[Variant]:
    for capability in MACHINES:
        for name, kernel_class in CLASSES.items():
            for kind in TYPES:
                if kind != "bfloat16" or name in BFLOAT16_CLASSES:
                    yield _tiled(name, kernel_class, kind, capability, None)
        for last in (False, True):
            name = f"statistics/{'last' if last else 'inner'}/float32/sm_{capability}"
            yield Variant(name, capability, statistics.signature(last), None, None)
        for dtype in (torch.float32, torch.float16):
            for aligned in (False, True):
                kind = f"{'aligned' if aligned else 'odd'}/{str(dtype).removeprefix('torch.')}"
                signature = conv2d_weight_grad.sum_signature(dtype, aligned=aligned)
                yield Variant(f"sum_parts/{kind}/sm_{capability}", capability, signature, None, None)


def tile_variants() -> Iterator[Variant]:
    """Every tile that may be chosen or timed for a large layer, not the modelled best alone."""
    for capability in (80, 90):
        for name in ("conv2d/wide", "conv2d/odd"):
            kernel_class = CLASSES[name]
            for kind in ("float16", "tf32"):
                for tile in _candidates(kernel_class, kind, capability):
                    yield _tiled(name, kernel_class, kind, capability, tile)


def _product_and_access(kernel_class: Class, kind: str) -> tuple[Product, int, Access]:
    dtype, precision = TYPES[kind]
    product = kernel_class.product(kernel_class.sizes)
    access = Access(kernel_class.aligned, precision, kernel_class.prologue)
    return product, dtype.itemsize, access


def _candidates(kernel_class: Class, kind: str, capability: int) -> list[Tile]:
    return candidates(*_product_and_access(kernel_class, kind), MACHINES[capability])


def _tiled(name: str, kernel_class: Class, kind: str, capability: int, tile: Tile | None) -> Variant:
    dtype, precision = TYPES[kind]
    label = f"{name}/{kind}/sm_{capability}"
    if tile is None:
        tile = choose_tile(*_product_and_access(kernel_class, kind), MACHINES[capability])
    else:
        label += f"/{tile.block_m}x{tile.block_n}x{tile.block_k}"
    signature = kernel_class.signature(
        dtype, tile, aligned=kernel_class.aligned, precision=precision, **kernel_class.options
    )
    return Variant(
        label, capability, signature, tile, tile.shared_bytes(dtype.itemsize, kernel_class.prologue)
    )
