"""Operations of a plan in standard ONNX operators: one function each, one table at the end."""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from cnnfast.export.onnx_writer import Graph
from cnnfast.plan.nodes import ABSENT, Node, Op, word_fraction


def input_name(graph: Graph, index: int) -> str:
    """The name of an external input."""
    several = sum(other.op is Op.INPUT for other in graph.plan.nodes) > 1
    return f"input_{index}" if several else "input"


def _input(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    name = input_name(graph, index)
    if not graph.plan.takes_lines(index):
        return name
    return graph.emit("Unsqueeze", [name, graph.numbers(2)], graph.names[index])


def _to_line(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    return graph.emit("Squeeze", [sources[0], graph.numbers(2)], graph.names[index])


def _conv2d(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    shape = [node[key] for key in ("out_channels", "group_channels", "kernel_h", "kernel_w")]
    operands = [sources[0], graph.weight(node["weight_at"], *shape)]
    if node["bias_at"] != ABSENT:
        operands.append(graph.weight(node["bias_at"], node["out_channels"], stem="bias"))
    value = graph.emit(
        "Conv",
        operands,
        graph.names[index],
        kernel_shape=shape[2:],
        strides=[node["stride_h"], node["stride_w"]],
        dilations=[node["dilation_h"], node["dilation_w"]],
        pads=_conv_pads(graph, index, node),
        group=node["groups"],
    )
    return graph.emit("Add", [value, sources[1]], graph.names[index]) if len(sources) > 1 else value


def _conv_pads(graph: Graph, index: int, node: Node) -> list[int]:
    if node.pads_to_same:
        return _same_pads(graph, index, node)
    return [node[f"pad_{side}"] for side in ("top", "left", "bottom", "right")]


def _same_pads(graph: Graph, index: int, node: Node) -> list[int]:
    """Top, left, bottom, right of a window that pads by the size of the image."""
    before, after = graph.image_sizes(index)
    starts, ends = [], []
    for axis, size, count in zip("hw", before, after, strict=True):
        span = node.attributes.get(f"dilation_{axis}", 1) * (node[f"kernel_{axis}"] - 1) + 1
        padding = max(0, (count - 1) * node[f"stride_{axis}"] + span - size)
        starts.append(padding // 2)
        ends.append(padding - padding // 2)
    return starts + ends


def _linear(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    operands = [sources[0], graph.weight(node["weight_at"], node["out_features"], node["in_features"])]
    if node["bias_at"] != ABSENT:
        operands.append(graph.weight(node["bias_at"], node["out_features"], stem="bias"))
    return graph.emit("Gemm", operands, graph.names[index], transB=1)


def _pads(graph: Graph, index: int, node: Node) -> list[int]:
    """Top, left, bottom, right: just enough for as many windows as torch takes, ceil_mode or not."""
    if node.pads_to_same:
        return _same_pads(graph, index, node)
    before, after = graph.image_sizes(index)
    starts, ends = [], []
    for axis, size, count in zip("hw", before, after, strict=True):
        pad = node[f"pad_{axis}"]
        span = node.attributes.get(f"dilation_{axis}", 1) * (node[f"kernel_{axis}"] - 1) + 1
        starts.append(pad)
        ends.append(max(0, (count - 1) * node[f"stride_{axis}"] + span - size - pad))
    return starts + ends


def _window(node: Node) -> dict[str, list[int]]:
    return {name: [node[f"{key}_h"], node[f"{key}_w"]] for name, key in _WINDOW}


_WINDOW = (("kernel_shape", "kernel"), ("strides", "stride"))


def _max_pool2d(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    pads, value, name = _pads(graph, index, node), sources[0], graph.names[index]
    if any(pad >= node[f"kernel_{axis}"] for pad, axis in zip(pads, "hwhw", strict=True)):
        # runtimes allow no padding as wide as the kernel, which a dilated one may need
        border = graph.constant(np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64), "border")
        least = graph.constant(np.array(-np.inf, np.float32), "least")
        value, pads = graph.emit("Pad", [value, border, least], name), [0, 0, 0, 0]
    dilations = [node["dilation_h"], node["dilation_w"]]
    return graph.emit("MaxPool", [value], name, **_window(node), pads=pads, dilations=dilations)


def _avg_pool2d(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    pads, name = _pads(graph, index, node), graph.names[index]
    taps = node["kernel_h"] * node["kernel_w"]
    divisors = np.full((), taps) if node.pads_to_same else _divisors(graph, index, node)
    value = graph.emit("AveragePool", [sources[0]], name, **_window(node), pads=pads, count_include_pad=1)
    if np.all(divisors == taps):
        return value
    return graph.emit("Mul", [value, graph.constant((taps / divisors).astype(np.float32), "share")], name)


def _divisors(graph: Graph, index: int, node: Node) -> np.ndarray:
    """What torch divides the sum of each window by, as [1, 1, height, width]."""
    before, after = graph.image_sizes(index)
    if node["divisor_override"]:
        return np.full((1, 1, 1, 1), float(node["divisor_override"]))
    sides = []
    for axis, size, count in zip("hw", before, after, strict=True):
        pad = node[f"pad_{axis}"]
        starts = np.arange(count) * node[f"stride_{axis}"] - pad
        ends = np.minimum(starts + node[f"kernel_{axis}"], size + pad)
        if not node["count_include_pad"]:
            starts, ends = np.maximum(starts, 0), np.minimum(ends, size)
        sides.append((ends - starts).astype(np.float64))
    return (sides[0][:, None] * sides[1][None, :])[None, None]


def _reshape_image(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    sizes = np.array([-1, node["channels"], node["height"], node["width"]], np.int64)
    return graph.emit("Reshape", [sources[0], graph.constant(sizes, "shape")], graph.names[index])


def _affine(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    shape = _per_channel(graph, index, node)
    scale = graph.weight(node["scale_at"], *shape, stem="scale")
    shift = graph.weight(node["shift_at"], *shape, stem="shift")
    scaled = graph.emit("Mul", [sources[0], scale], graph.names[index])
    return graph.emit("Add", [scaled, shift], graph.names[index])


def _local_response_norm(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    size, name = node["size"], graph.names[index]
    alpha, beta, k = (word_fraction(node[key]) for key in ("alpha", "beta", "k"))
    if size % 2:
        return graph.emit("LRN", sources, name, size=size, alpha=alpha, beta=beta, bias=k)
    # an even window lies to the other side in ONNX: written out, as torch does it
    axis = graph.constant(np.array([1], np.int64), "axis")
    squares = graph.emit("Mul", [sources[0], sources[0]], name)
    volume = graph.emit("Unsqueeze", [squares, axis], name)
    window = {"kernel_shape": [size, 1, 1], "pads": [size // 2, 0, 0, (size - 1) // 2, 0, 0]}
    means = graph.emit("AveragePool", [volume], name, **window, count_include_pad=1)
    value = graph.emit("Squeeze", [means, axis], name)
    for operator, number in (("Mul", alpha), ("Add", k), ("Pow", beta)):
        value = graph.emit(operator, [value, graph.constant(np.array(number, np.float32))], name)
    return graph.emit("Div", [sources[0], value], name)


def _per_channel(graph: Graph, index: int, node: Node) -> list[int]:
    """The shape of a constant per channel that broadcasts over a node's value."""
    return [node["channels"], *[1] * (len(graph.shapes[index]) - 2)]


def _multiply(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    value = graph.emit("Mul", sources[:2], graph.names[index])
    return graph.emit("Add", [value, sources[2]], graph.names[index]) if len(sources) > 2 else value


def _slice(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    first = node["first"]
    return _part(graph, sources[0], graph.names[index], 1, first, first + node["channels"])


def _part(graph: Graph, value: str, name: str, axis: int, first: int, end: int) -> str:
    return graph.emit("Slice", [value, *map(graph.numbers, (first, end, axis))], name)


def _channel_shuffle(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    (_, channels, *sizes), name, groups = graph.shapes[index], graph.names[index], node["groups"]
    # 0: the batch as it is
    apart = graph.emit("Reshape", [sources[0], graph.numbers(0, groups, channels // groups, *sizes)], name)
    turned = graph.emit("Transpose", [apart], name, perm=[0, 2, 1, *range(3, 3 + len(sizes))])
    return graph.emit("Reshape", [turned, graph.numbers(0, channels, *sizes)], name)


def _spans(size: int, count: int) -> list[tuple[int, int]]:
    """What torch's adaptive pooling covers along one axis."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _even_window(graph: Graph, index: int) -> dict[str, list[int]] | None:
    """The kernel and the stride of an adaptive pooling whose windows are all equal."""
    before, after = graph.image_sizes(index)
    if any(size % count for size, count in zip(before, after, strict=True)):
        return None
    sizes = [size // count for size, count in zip(before, after, strict=True)]
    return {"kernel_shape": sizes, "strides": sizes}


def _adaptive_avg_pool2d(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    if window := _even_window(graph, index):
        return graph.emit("AveragePool", sources, graph.names[index], **window)
    matrices = []
    for size, count in zip(*graph.image_sizes(index), strict=True):
        matrix = np.zeros((count, size))
        for row, (start, end) in enumerate(_spans(size, count)):
            matrix[row, start:end] = 1 / (end - start)
        matrices.append(matrix)
    return _along_both(graph, index, sources[0], *matrices)


def _adaptive_max_pool2d(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    value, name = sources[0], graph.names[index]
    if window := _even_window(graph, index):
        return graph.emit("MaxPool", [value], name, **window)
    for axis, (size, count) in enumerate(zip(*graph.image_sizes(index), strict=True), start=2):
        parts = [_part(graph, value, name, axis, start, end) for start, end in _spans(size, count)]
        largest = [graph.emit("ReduceMax", [part], name, axes=[axis], keepdims=1) for part in parts]
        value = graph.emit("Concat", largest, name, axis=axis)
    return value


def _along_both(graph: Graph, index: int, value: str, rows: np.ndarray, columns: np.ndarray) -> str:
    """rows @ image @ columns.T"""
    name = graph.names[index]
    left = graph.constant(rows.astype(np.float32), "rows")
    right = graph.constant(columns.T.astype(np.float32), "columns")
    return graph.emit("MatMul", [graph.emit("MatMul", [left, value], name), right], name)


def _pad(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    sides = [node[side] for side in ("top", "left", "bottom", "right")]
    if len(sources) > 1:
        before, after = graph.image_sizes(index)
        rows, columns = (b - a for a, b in zip(before, after, strict=True))
        sides = [rows // 2, columns // 2, rows - rows // 2, columns - columns // 2]
    border = graph.numbers(0, 0, *sides[:2], 0, 0, *sides[2:])
    value = graph.number(word_fraction(node["value"]))
    return graph.emit("Pad", [sources[0], border, value], graph.names[index])


def _mirror_pad(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    """As places along each axis: this opset's Pad knows no opposite edge."""
    value, mode = sources[0], ("reflect", "replicate", "circular")[node["mode"]]
    sides = ((node["top"], node["bottom"]), (node["left"], node["right"]))
    for axis, (size, pads) in enumerate(zip(graph.image_sizes(index)[0], sides, strict=True), start=2):
        places = functional.pad(torch.arange(size, dtype=torch.float64)[None], pads, mode=mode)[0].long()
        value = graph.emit("Gather", [value, graph.numbers(*places.tolist())], graph.names[index], axis=axis)
    return value


def _interpolate(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    """Weights or places along each axis are torch's own, for the image size of the example."""
    mode = ("nearest", "nearest-exact", "bilinear")[node["mode"]]
    matrices = [_resampling(graph, index, node, axis, mode) for axis in (0, 1)]
    if mode == "bilinear":
        return _along_both(graph, index, sources[0], *matrices)
    value = sources[0]
    for axis, matrix in enumerate(matrices, start=2):
        value = graph.emit("Gather", [value, graph.numbers(*matrix.argmax(1))], graph.names[index], axis=axis)
    return value


def _resampling(graph: Graph, index: int, node: Node, axis: int, mode: str) -> np.ndarray:
    """The matrix from one axis of the image to that of the result."""
    before, after = graph.image_sizes(index)
    unit = torch.eye(before[axis], dtype=torch.float64)[None, :, :, None]  # a channel per place
    options: dict = {
        "mode": mode,
        "align_corners": bool(node["align_corners"]) if mode == "bilinear" else None,
    }
    if len(node.inputs) > 1 or node["height"]:
        options["size"] = (after[axis], 1)
    else:
        options["scale_factor"] = (word_fraction(node[("scale_h", "scale_w")[axis]]), 1.0)
    return functional.interpolate(unit, **options)[0, :, :, 0].T.numpy()


def _layer_norm(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    """Over the channels, which ONNX wants last."""
    name, rank = graph.names[index], len(graph.shapes[index])
    operands = [graph.weight(node["weight_at"], node["channels"])] if node["weight_at"] != ABSENT else []
    operands = operands or [graph.constant(np.ones(node["channels"], np.float32), "ones")]
    if node["bias_at"] != ABSENT:
        operands.append(graph.weight(node["bias_at"], node["channels"], stem="bias"))
    there, back = [0, *range(2, rank), 1], [0, rank - 1, *range(1, rank - 1)]
    value = graph.emit("Transpose", sources, name, perm=there)
    eps = word_fraction(node["eps"])
    value = graph.emit("LayerNormalization", [value, *operands], name, axis=-1, epsilon=eps)
    return graph.emit("Transpose", [value], name, perm=back)


def _group_norm(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    (_, channels, *sizes), name, groups = graph.shapes[index], graph.names[index], node["groups"]
    rows = graph.emit("Reshape", [sources[0], graph.numbers(0, groups, -1)], name)
    plain = [graph.constant(fill(groups, dtype=np.float32), "plain") for fill in (np.ones, np.zeros)]
    eps = word_fraction(node["eps"])
    value = graph.emit("InstanceNormalization", [rows, *plain], name, epsilon=eps)
    value = graph.emit("Reshape", [value, graph.numbers(0, channels, *sizes)], name)
    for operator, key in (("Mul", "weight_at"), ("Add", "bias_at")):
        if node[key] != ABSENT:
            constant = graph.weight(node[key], *_per_channel(graph, index, node))
            value = graph.emit(operator, [value, constant], name)
    return value


def _prelu(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    slope = graph.weight(node["slope_at"], *_per_channel(graph, index, node), stem="slope")
    return graph.emit("PRelu", [sources[0], slope], graph.names[index])


def _to_image(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    return graph.emit("Unsqueeze", [sources[0], graph.numbers(2, 3)], graph.names[index])


def _softmax(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    return graph.emit("LogSoftmax" if node["logarithm"] else "Softmax", sources, graph.names[index], axis=1)


def _power(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    exponent = graph.number(word_fraction(node["exponent"]))
    return graph.emit("Pow", [sources[0], exponent], graph.names[index])


def _channel_conv(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    name, taps = graph.names[index], node["taps"]
    operands = [graph.emit("Reshape", [sources[0], graph.numbers(0, 1, -1)], name)]
    operands.append(graph.weight(node["weight_at"], 1, 1, taps))
    if node["bias_at"] != ABSENT:
        operands.append(graph.weight(node["bias_at"], 1, stem="bias"))
    value = graph.emit("Conv", operands, name, kernel_shape=[taps], pads=[taps // 2, taps // 2])
    return graph.emit("Reshape", [value, graph.numbers(0, *graph.shapes[index][1:])], name)


def _cut(graph: Graph, index: int, node: Node, value: str, sizes: tuple[int, int]) -> str:
    """An image of these sizes without the rows and columns that are left out."""
    starts, ends = (node["top"], node["left"]), (sizes[0] - node["bottom"], sizes[1] - node["right"])
    steps = (node.attributes.get("stride_h", 1), node.attributes.get("stride_w", 1))
    bounds = (graph.numbers(*part) for part in (starts, ends, (2, 3), steps))
    return graph.emit("Slice", [value, *bounds], graph.names[index])


def _crop(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    return _cut(graph, index, node, sources[0], graph.image_sizes(index)[0])


def _depth_to_space(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    name, block = graph.names[index], (node["block_h"], node["block_w"])
    (_, channels, *_), (height, width) = graph.shapes[index], graph.image_sizes(index)[0]
    parts = (*block, channels) if node["blocks_first"] else (channels, *block)
    order = [0, 3, 4, 1, 5, 2] if node["blocks_first"] else [0, 1, 4, 2, 5, 3]
    apart = graph.emit("Reshape", [sources[0], graph.numbers(0, *parts, height, width)], name)
    turned = graph.emit("Transpose", [apart], name, perm=order)
    sizes = (height * block[0], width * block[1])
    value = graph.emit("Reshape", [turned, graph.numbers(0, channels, *sizes)], name)
    return _cut(graph, index, node, value, sizes)


def _attention_pool(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
    name, channels = graph.names[index], graph.shapes[index][1]
    logits = graph.emit("Reshape", [sources[1], graph.numbers(0, -1, 1)], name)
    shares = graph.emit("Softmax", [logits], name, axis=1)
    pixels = graph.emit("Reshape", [sources[0], graph.numbers(0, channels, -1)], name)
    value = graph.emit("MatMul", [pixels, shares], name)
    return graph.emit("Reshape", [value, graph.numbers(0, channels, 1, 1)], name)


def _plain(operator: str, **attributes: int | list[int]) -> "Lowering":
    def lower(graph: Graph, index: int, node: Node, sources: list[str]) -> str:
        return graph.emit(operator, sources, graph.names[index], **attributes)

    return lower


Lowering = Callable[[Graph, int, Node, list[str]], str]
LOWERINGS: dict[Op, Lowering] = {
    Op.INPUT: _input,
    Op.CONV2D: _conv2d,
    Op.LINEAR: _linear,
    Op.MAX_POOL2D: _max_pool2d,
    Op.AVG_POOL2D: _avg_pool2d,
    Op.FLATTEN: _plain("Flatten", axis=1),
    Op.RESHAPE_IMAGE: _reshape_image,
    Op.ACTIVATION: lambda graph, index, node, sources: sources[0],
    Op.ADD: _plain("Add"),
    Op.CONCAT: _plain("Concat", axis=1),
    Op.GLOBAL_AVG_POOL: _plain("GlobalAveragePool"),
    Op.AFFINE: _affine,
    Op.LOCAL_RESPONSE_NORM: _local_response_norm,
    Op.MULTIPLY: _multiply,
    Op.SLICE: _slice,
    Op.CHANNEL_SHUFFLE: _channel_shuffle,
    Op.ADAPTIVE_AVG_POOL2D: _adaptive_avg_pool2d,
    Op.ADAPTIVE_MAX_POOL2D: _adaptive_max_pool2d,
    Op.PAD: _pad,
    Op.INTERPOLATE: _interpolate,
    Op.LAYER_NORM: _layer_norm,
    Op.GROUP_NORM: _group_norm,
    Op.PRELU: _prelu,
    Op.TO_IMAGE: _to_image,
    Op.TO_LINE: _to_line,
    Op.CHANNEL_MAX: _plain("ReduceMax", axes=[1], keepdims=1),
    Op.IMAGE_NORM: _plain("ReduceL2", axes=[2, 3], keepdims=1),
    Op.CHANNEL_CONV: _channel_conv,
    Op.POWER: _power,
    Op.SOFTMAX: _softmax,
    Op.ATTENTION_POOL: _attention_pool,
    Op.CROP: _crop,
    Op.MIRROR_PAD: _mirror_pad,
    Op.DEPTH_TO_SPACE: _depth_to_space,
}
