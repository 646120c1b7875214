"""The words of a plan: operations, their attributes, activations.

A plan is a list of nodes in an order in which they can run. A node names its inputs by their place in the
list. An attribute that ends in _at is a place in the weights, -1 where there is none. A fraction is the word
that its float64 has in memory. An activation has two numbers, of which most kinds use none.
"""

import struct
from dataclasses import dataclass, field, replace
from enum import IntEnum

MAGIC = 0x434E4E46  # "CNNF"
FORMAT = 7  # with lines: inputs of three dimensions that no reshape reads, and TO_LINE
SAME_FORMAT = 6  # with SAME, and the operations from CHANNEL_MAX on
STORAGE_FORMAT = 5  # without those
FLOAT_FORMAT = 4  # without the words for the storage of values: all are float32
OLDEST_FORMAT = 3  # activations without numbers
ABSENT = -1
SAME = -1  # every padding of a window: just enough for ceil(size / stride) positions, the odd one at the end
ANY = -1
ALIGNMENT = 16  # floats: constants start on a cache line
DIRECT = 0  # largest_tile: no Winograd convolution
ANY_TILE = 6  # largest_tile: every tile that the kernels have, one more where values are bfloat16


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
    MULTIPLY = 13
    SLICE = 14
    CHANNEL_SHUFFLE = 15
    ADAPTIVE_AVG_POOL2D = 16
    ADAPTIVE_MAX_POOL2D = 17
    PAD = 18
    INTERPOLATE = 19
    LAYER_NORM = 20
    GROUP_NORM = 21
    PRELU = 22
    TO_IMAGE = 23
    CHANNEL_MAX = 24  # the largest channel of each pixel
    IMAGE_NORM = 25  # per channel the 2-norm over the image
    CHANNEL_CONV = 26  # a filter that slides along the channels of one pixel
    POWER = 27
    ATTENTION_POOL = 28  # the mean over pixels, weighted by the softmax of a second input
    CROP = 29  # rows and columns left out
    DEPTH_TO_SPACE = 30  # channels become blocks of pixels, then rows and columns are left out
    MIRROR_PAD = 31
    SOFTMAX = 32  # over the channels of each pixel
    TO_LINE = 33  # images of one row become N×C×L


class Act(IntEnum):
    NONE = 0
    RELU = 1
    SIGMOID = 2
    CLAMP = 3  # into [first number, second number]
    LEAKY_RELU = 4  # first number: slope
    HARDSIGMOID = 5
    HARDSWISH = 6
    SILU = 7
    TANH = 8
    GELU = 9
    GELU_TANH = 10
    ELU = 11  # first number: alpha
    MISH = 12


class Storage(IntEnum):
    """How values lie in memory."""

    FLOAT32 = 0
    BFLOAT16 = 1


class Mirror(IntEnum):
    """What lies beyond the edge of an image: it mirrored, its outermost pixels, or its opposite edge."""

    REFLECT = 0
    REPLICATE = 1
    CIRCULAR = 2


class Interpolation(IntEnum):
    NEAREST = 0
    NEAREST_EXACT = 1
    BILINEAR = 2


# Inputs that broadcast: the second of an ADD or MULTIPLY may be N×C×1×1 or N×1×H×W. MULTIPLY adds a third.

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
    Op.MULTIPLY: (),
    Op.SLICE: ("first", "channels"),
    Op.CHANNEL_SHUFFLE: ("groups",),
    Op.ADAPTIVE_AVG_POOL2D: ("height", "width"),  # 0: as the input
    Op.ADAPTIVE_MAX_POOL2D: ("height", "width"),
    # value is a fraction. With a second input: to its size, evenly, the odd row or column at the end.
    Op.PAD: ("top", "left", "bottom", "right", "value"),
    # Sizes 0 where the scales, which are fractions, or a second input say them; scales 0 where none is.
    Op.INTERPOLATE: ("mode", "align_corners", "height", "width", "scale_h", "scale_w"),
    Op.LAYER_NORM: ("weight_at", "bias_at", "channels", "eps"),  # eps is a fraction
    Op.GROUP_NORM: ("weight_at", "bias_at", "channels", "groups", "eps"),
    Op.PRELU: ("slope_at", "channels"),
    Op.TO_IMAGE: (),
    Op.TO_LINE: (),
    Op.CHANNEL_MAX: (),
    Op.IMAGE_NORM: (),
    Op.CHANNEL_CONV: ("weight_at", "taps", "bias_at"),
    Op.POWER: ("exponent",),  # a fraction
    Op.ATTENTION_POOL: (),
    # What is left out on each side; then every stride-th is kept.
    Op.CROP: ("top", "left", "bottom", "right", "stride_h", "stride_w"),
    Op.SOFTMAX: ("logarithm",),
    Op.MIRROR_PAD: ("top", "left", "bottom", "right", "mode"),
    # blocks_first: channels are ordered by place in the block first; else by channel first.
    Op.DEPTH_TO_SPACE: ("block_h", "block_w", "blocks_first", "top", "left", "bottom", "right"),
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
    numbers: tuple[float, float] = (0.0, 0.0)  # of the activation

    def __getitem__(self, attribute: str) -> int:
        return self.attributes[attribute]

    @property
    def is_of_format_6(self) -> bool:
        """Whether a plan with this node has to be written in it, or in a later one."""
        pads_like = self.op is Op.PAD and len(self.inputs) == 2
        return self.op >= Op.CHANNEL_MAX or self.pads_to_same or pads_like

    @property
    def pads_to_same(self) -> bool:
        """Whether the padding of its window follows from the size of the image."""
        return SAME in (self.attributes.get("pad_top"), self.attributes.get("pad_h"))


@dataclass(frozen=True)
class Plan:
    """values: how they are stored between nodes; results: what the output tensors are."""

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    values: Storage = Storage.FLOAT32
    results: Storage = Storage.FLOAT32

    def with_conv_attributes(self, **attributes: int) -> "Plan":
        """The same plan with other attributes in every convolution."""
        nodes = (
            replace(node, attributes=node.attributes | attributes) if node.op is Op.CONV2D else node
            for node in self.nodes
        )
        return replace(self, nodes=tuple(nodes))

    def takes_lines(self, index: int) -> bool:
        """Whether a node is an input N×C×L, which is an image of one row for those behind it."""
        if self.nodes[index].op is not Op.INPUT or self.nodes[index]["rank"] != 3:
            return False
        return not any(node.op is Op.RESHAPE_IMAGE and index in node.inputs for node in self.nodes)

    @property
    def has_lines(self) -> bool:
        """Whether it takes or gives N×C×L."""
        return any(node.op is Op.TO_LINE or self.takes_lines(i) for i, node in enumerate(self.nodes))

    @property
    def half(self) -> bool:
        """Whether values are bfloat16 between nodes."""
        return self.values is Storage.BFLOAT16

    @property
    def format(self) -> int:
        """The oldest format that has all of it."""
        if self.has_lines:
            return FORMAT
        if any(node.is_of_format_6 for node in self.nodes):
            return SAME_FORMAT
        return STORAGE_FORMAT if self.half else FLOAT_FORMAT

    @property
    def tuned(self) -> bool:
        """Whether measured times choose the algorithm of a convolution."""
        return any(node.op is Op.CONV2D and node["tuned"] for node in self.nodes)


class PlanError(ValueError):
    """Tensors that hold no plan of this version."""
