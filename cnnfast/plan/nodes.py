"""The words of a plan: operations, their attributes, activations.

A plan is a list of nodes in an order in which they can run. A node names its inputs by their place in the
list. An attribute that ends in _at is a place in the weights, -1 where there is none. A fraction is the word
that its float64 has in memory.
"""

import struct
from dataclasses import dataclass, field, replace
from enum import IntEnum

MAGIC = 0x434E4E46  # "CNNF"
FORMAT = 3
ABSENT = -1
ANY = -1
ALIGNMENT = 16  # floats: constants start on a cache line
DIRECT = 0  # largest_tile: no Winograd convolution
ANY_TILE = 6  # largest_tile: every tile that the kernels have


class Op(IntEnum):
    INPUT = 0
    CONV2D = 1
    LINEAR = 2
    MAX_POOL2D = 3
    AVG_POOL2D = 4
    FLATTEN = 5
    RESHAPE_IMAGE = 6
    ACTIVATION = 7
    ADD = 8
    CONCAT = 9
    GLOBAL_AVG_POOL = 10
    AFFINE = 11
    LOCAL_RESPONSE_NORM = 12


class Act(IntEnum):
    NONE = 0
    RELU = 1
    SIGMOID = 2


ATTRIBUTES: dict[Op, tuple[str, ...]] = {
    Op.INPUT: ("rank", "channels"),
    Op.CONV2D: (
        "weight_at", "out_channels", "group_channels", "kernel_h", "kernel_w", "bias_at",
        "stride_h", "stride_w", "pad_top", "pad_left", "pad_bottom", "pad_right",
        "dilation_h", "dilation_w", "groups", "largest_tile", "tuned",
    ),
    Op.LINEAR: ("weight_at", "out_features", "in_features", "bias_at"),
    Op.MAX_POOL2D: (
        "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w",
        "dilation_h", "dilation_w", "ceil_mode",
    ),
    Op.AVG_POOL2D: (
        "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w",
        "ceil_mode", "count_include_pad", "divisor_override",
    ),
    Op.FLATTEN: (),
    Op.RESHAPE_IMAGE: ("channels", "height", "width"),
    Op.ACTIVATION: (),
    Op.ADD: (),
    Op.CONCAT: (),
    Op.GLOBAL_AVG_POOL: (),
    Op.AFFINE: ("scale_at", "shift_at", "channels"),
    Op.LOCAL_RESPONSE_NORM: ("size", "alpha", "beta", "k"),  # the last three are fractions
}  # fmt: skip


def fraction_word(value: float) -> int:
    """A fraction as an attribute."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


def word_fraction(word: int) -> float:
    """The fraction that an attribute stands for."""
    return struct.unpack("<d", struct.pack("<q", word))[0]


@dataclass(frozen=True)
class Node:
    """One step: an operation on earlier values, its attributes by name, then an activation."""

    op: Op
    inputs: tuple[int, ...] = ()
    attributes: dict[str, int] = field(default_factory=dict)
    activation: Act = Act.NONE

    def __getitem__(self, attribute: str) -> int:
        return self.attributes[attribute]


@dataclass(frozen=True)
class Plan:
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]

    def with_conv_attributes(self, **attributes: int) -> "Plan":
        """The same plan with other attributes in every convolution."""
        nodes = (
            replace(node, attributes=node.attributes | attributes) if node.op is Op.CONV2D else node
            for node in self.nodes
        )
        return replace(self, nodes=tuple(nodes))

    @property
    def tuned(self) -> bool:
        """Whether measured times choose the algorithm of a convolution."""
        return any(node.op is Op.CONV2D and node["tuned"] for node in self.nodes)


class PlanError(ValueError):
    """Tensors that hold no plan of this version."""
