"""Shapes, multiply-adds and bytes of a plan's nodes; the operator library's own shapes have the last word."""

import math

from cnnfast.plan.nodes import ABSENT, Node, Op, Plan, word_fraction

Shape = tuple[int, ...]


def infer(plan: Plan, input_shape: Shape) -> list[Shape]:
    """The shape that each node gives, for one external input."""
    shapes: list[Shape] = []
    for i, node in enumerate(plan.nodes):
        sources = [shapes[source] for source in node.inputs]
        shapes.append(_input_shape(plan, i, input_shape) if node.op is Op.INPUT else _shape(node, sources))
    return shapes


def _input_shape(plan: Plan, index: int, shape: Shape) -> Shape:
    """Lines are images of one row within a plan."""
    return (*shape[:2], 1, shape[2]) if plan.takes_lines(index) else tuple(shape)


def _shape(node: Node, sources: list[Shape]) -> Shape:
    first = sources[0]
    if node.op is Op.CONV2D:
        pads = (node["pad_top"] + node["pad_bottom"], node["pad_left"] + node["pad_right"])
        return first[0], node["out_channels"], *_windows(node, first, pads)
    if node.op in (Op.MAX_POOL2D, Op.AVG_POOL2D):
        return *first[:2], *_windows(node, first, (2 * node["pad_h"], 2 * node["pad_w"]))
    if node.op is Op.LINEAR:
        return first[0], node["out_features"]
    if node.op is Op.FLATTEN:
        return first[0], math.prod(first[1:])
    if node.op is Op.RESHAPE_IMAGE:
        image = (node["channels"], node["height"], node["width"])
        return math.prod(first) // math.prod(image), *image
    if node.op is Op.CONCAT:
        return first[0], sum(shape[1] for shape in sources), *first[2:]
    if node.op in (Op.GLOBAL_AVG_POOL, Op.IMAGE_NORM, Op.ATTENTION_POOL):
        return *first[:2], 1, 1
    if node.op is Op.CROP:
        sizes = _cut(node, first[2:])
        return *first[:2], -(-sizes[0] // node["stride_h"]), -(-sizes[1] // node["stride_w"])
    if node.op is Op.DEPTH_TO_SPACE:
        height, width = node["block_h"], node["block_w"]
        sizes = _cut(node, (first[2] * height, first[3] * width))
        return first[0], first[1] // (height * width), *sizes
    if node.op is Op.CHANNEL_MAX:
        return first[0], 1, *first[2:]
    if node.op is Op.TO_IMAGE:
        return *first, 1, 1
    if node.op is Op.TO_LINE:
        return *first[:2], first[3]
    if node.op is Op.SLICE:
        return first[0], node["channels"], *first[2:]
    if node.op is Op.PAD and len(sources) == 2:
        return *first[:2], *sources[1][2:]
    if node.op in (Op.PAD, Op.MIRROR_PAD):
        return *first[:2], first[2] + node["top"] + node["bottom"], first[3] + node["left"] + node["right"]
    if node.op in (Op.ADAPTIVE_AVG_POOL2D, Op.ADAPTIVE_MAX_POOL2D):
        return *first[:2], node["height"] or first[2], node["width"] or first[3]
    if node.op is Op.INTERPOLATE:
        return *first[:2], *_interpolated(node, sources)
    if node.op in (Op.ADD, Op.MULTIPLY):
        return max(sources, key=math.prod)
    return first


def _cut(node: Node, sizes: Shape) -> tuple[int, int]:
    """Without the rows and columns that are left out."""
    return sizes[0] - node["top"] - node["bottom"], sizes[1] - node["left"] - node["right"]


def _interpolated(node: Node, sources: list[Shape]) -> tuple[int, int]:
    if len(sources) == 2:
        return sources[1][2], sources[1][3]
    height, width = (
        node[size] or math.floor(side * word_fraction(node[scale]))
        for size, scale, side in zip(("height", "width"), ("scale_h", "scale_w"), sources[0][2:], strict=True)
    )
    return height, width


def _windows(node: Node, shape: Shape, pads: tuple[int, int]) -> tuple[int, int]:
    """How many windows fit, vertically and horizontally."""
    counts = []
    for size, pad, axis in zip(shape[2:], pads, "hw", strict=True):
        kernel, stride = node[f"kernel_{axis}"], node[f"stride_{axis}"]
        if node.pads_to_same:
            counts.append(-(-size // stride))
            continue
        span = size + pad - node.attributes.get(f"dilation_{axis}", 1) * (kernel - 1) - 1
        count = span // stride + 1
        if node.attributes.get("ceil_mode"):
            count = -(-span // stride) + 1
            if (
                count - 1
            ) * stride >= size + pad // 2:  # a window has to start inside the input or its left padding
                count -= 1
        counts.append(count)
    return counts[0], counts[1]


def multiply_adds(node: Node, shape: Shape) -> int:
    """Of a node that gives this shape; 0 for all but convolutions and linear layers."""
    if node.op is Op.CONV2D:
        return math.prod(shape) * node["group_channels"] * node["kernel_h"] * node["kernel_w"]
    return math.prod(shape) * node["in_features"] if node.op is Op.LINEAR else 0


def compulsory_bytes(node: Node, sources: list[Shape], shape: Shape) -> int:
    """Bytes that a node moves where each value and constant is read once and its result written once.

    In float32; the external input counts as read. Flattening and concatenation move nothing.
    """
    if node.op in (Op.FLATTEN, Op.CONCAT, Op.SLICE, Op.TO_IMAGE, Op.TO_LINE):
        return 0
    read = [shape] if node.op is Op.INPUT else sources
    return 4 * (sum(map(math.prod, read)) + math.prod(shape) + _constants(node))


def _constants(node: Node) -> int:
    """Floats among a plan's weights that a node reads."""
    names = ("bias_at", "scale_at", "shift_at", "slope_at")
    biases = sum(node.attributes.get(name, ABSENT) != ABSENT for name in names)
    if node.op is Op.CONV2D:
        taps = node["group_channels"] * node["kernel_h"] * node["kernel_w"]
        return node["out_channels"] * (taps + biases)
    if node.op is Op.LINEAR:
        return node["out_features"] * (node["in_features"] + biases)
    if node.op in (Op.LAYER_NORM, Op.GROUP_NORM):
        return node["channels"] * (biases + (node["weight_at"] != ABSENT))
    if node.op is Op.CHANNEL_CONV:
        return node["taps"] + biases
    return node["channels"] * biases if node.op in (Op.AFFINE, Op.PRELU) else 0
