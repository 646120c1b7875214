"""Runs a plan with torch.nn.functional: what its words mean, written down apart from the C++ that runs it.

In float64 it is the truth for a plan's arithmetic.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnfast.plan.nodes import SAME, Act, Node, Op, Plan, word_fraction


def run(
    plan: Plan, weights: Tensor, inputs: list[Tensor], dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """The outputs of a plan."""
    weights, inputs = weights.to(dtype), [x.to(dtype) for x in inputs]
    values: list[Tensor] = []
    for node in plan.nodes:
        sources = [values[i] for i in node.inputs]
        value = inputs.pop(0) if node.op is Op.INPUT else _OPERATIONS[node.op](node, weights, *sources)
        values.append(_activate(node, value))
    return [values[i] for i in plan.outputs]


def _activate(node: Node, x: Tensor) -> Tensor:
    first, second = node.numbers
    return {
        Act.NONE: lambda y: y,
        Act.RELU: torch.relu,
        Act.SIGMOID: torch.sigmoid,
        Act.CLAMP: lambda y: y.clamp(first, second),
        Act.LEAKY_RELU: lambda y: F.leaky_relu(y, first),
        Act.HARDSIGMOID: F.hardsigmoid,
        Act.HARDSWISH: F.hardswish,
        Act.SILU: F.silu,
        Act.TANH: torch.tanh,
        Act.GELU: F.gelu,
        Act.GELU_TANH: lambda y: F.gelu(y, approximate="tanh"),
        Act.ELU: lambda y: F.elu(y, first),
        Act.MISH: F.mish,
    }[node.activation](x)


def _constant(weights: Tensor, at: int, *shape: int) -> Tensor | None:
    count = torch.Size(shape).numel()
    assert at == -1 or (at % 16 == 0 and at + count <= len(weights))
    return None if at == -1 else weights[at : at + count].view(shape)


def _conv2d(node: Node, weights: Tensor, x: Tensor, residual: Tensor | None = None) -> Tensor:
    shape = [node[key] for key in ("out_channels", "group_channels", "kernel_h", "kernel_w")]
    sides = [node[f"pad_{side}"] for side in ("left", "right", "top", "bottom")]
    x = F.pad(x, _same_sides(node, x) if SAME in sides else sides)
    y = F.conv2d(
        x,
        _constant(weights, node["weight_at"], *shape),
        _constant(weights, node["bias_at"], node["out_channels"]),
        (node["stride_h"], node["stride_w"]),
        0,
        (node["dilation_h"], node["dilation_w"]),
        node["groups"],
    )
    if residual is None:
        return y
    assert residual.shape == y.shape
    return y + residual


def _linear(node: Node, weights: Tensor, x: Tensor) -> Tensor:
    assert x.dim() == 2
    weight = _constant(weights, node["weight_at"], node["out_features"], node["in_features"])
    return F.linear(x, weight, _constant(weights, node["bias_at"], node["out_features"]))


def _same_sides(node: Node, x: Tensor) -> list[int]:
    sides = []
    for axis, size in (("w", x.shape[3]), ("h", x.shape[2])):
        stride, count = node[f"stride_{axis}"], math.ceil(size / node[f"stride_{axis}"])
        extent = node.attributes.get(f"dilation_{axis}", 1) * (node[f"kernel_{axis}"] - 1) + 1
        padding = max((count - 1) * stride + extent - size, 0)
        sides += [padding // 2, padding - padding // 2]
    return sides


def _window(node: Node) -> list[tuple[int, int]]:
    pads = (0, 0) if SAME in (node["pad_h"], node["pad_w"]) else (node["pad_h"], node["pad_w"])
    return [*((node[f"{name}_h"], node[f"{name}_w"]) for name in ("kernel", "stride")), pads]


def _max_pool2d(node: Node, weights: Tensor, x: Tensor) -> Tensor:
    dilation = (node["dilation_h"], node["dilation_w"])
    if node["pad_h"] == SAME:
        x = F.pad(x, _same_sides(node, x), value=-math.inf)
    return F.max_pool2d(x, *_window(node), dilation, bool(node["ceil_mode"]))


def _avg_pool2d(node: Node, weights: Tensor, x: Tensor) -> Tensor:
    divisor = node["divisor_override"] or None
    if node["pad_h"] == SAME:
        x = F.pad(x, _same_sides(node, x))
    return F.avg_pool2d(x, *_window(node), bool(node["ceil_mode"]), bool(node["count_include_pad"]), divisor)


def _broadcasts(a: Tensor, b: Tensor) -> bool:
    return b.shape in (a.shape, (*a.shape[:2], 1, 1), (a.shape[0], 1, *a.shape[2:]))


def _channel_conv(node: Node, weights: Tensor, x: Tensor) -> Tensor:
    weight = _constant(weights, node["weight_at"], node["taps"]).view(1, 1, -1)
    y = F.conv1d(x.flatten(1)[:, None], weight, _constant(weights, node["bias_at"], 1), padding="same")
    return y.view(x.shape)


def _cut(node: Node, x: Tensor) -> Tensor:
    return x[:, :, node["top"] : x.shape[2] - node["bottom"], node["left"] : x.shape[3] - node["right"]]


def _crop(node: Node, weights: Tensor, x: Tensor) -> Tensor:
    return _cut(node, x)[:, :, :: node["stride_h"], :: node["stride_w"]]


def _depth_to_space(node: Node, weights: Tensor, x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    block = (node["block_h"], node["block_w"])
    channels //= block[0] * block[1]
    if node["blocks_first"]:
        x = x.view(n, *block, channels, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.view(n, channels, *block, height, width).permute(0, 1, 4, 2, 5, 3)
    return _cut(node, x.reshape(n, channels, height * block[0], width * block[1]))


def _attention_pool(node: Node, weights: Tensor, x: Tensor, logits: Tensor) -> Tensor:
    assert logits.shape == (x.shape[0], 1, *x.shape[2:])
    return (x * logits.flatten(1).softmax(1).view(logits.shape)).sum((2, 3), keepdim=True)


def _add(node: Node, weights: Tensor, a: Tensor, b: Tensor) -> Tensor:
    assert _broadcasts(a, b)
    return a + b


def _multiply(node: Node, weights: Tensor, a: Tensor, b: Tensor, added: Tensor | None = None) -> Tensor:
    assert _broadcasts(a, b)
    return a * b if added is None else a * b + added


def _interpolate(node: Node, weights: Tensor, x: Tensor, like: Tensor | None = None) -> Tensor:
    mode = ("nearest", "nearest-exact", "bilinear")[node["mode"]]
    corners = bool(node["align_corners"]) if mode == "bilinear" else None
    scales = (word_fraction(node["scale_h"]), word_fraction(node["scale_w"]))
    if like is not None or node["height"]:
        size = like.shape[2:] if like is not None else (node["height"], node["width"])
        return F.interpolate(x, size=size, mode=mode, align_corners=corners)
    return F.interpolate(x, scale_factor=scales, mode=mode, align_corners=corners)


def _mirror_pad(node: Node, weights: Tensor, x: Tensor) -> Tensor:
    sides = [node[side] for side in ("left", "right", "top", "bottom")]
    return F.pad(x, sides, mode=("reflect", "replicate", "circular")[node["mode"]])


def _pad(node: Node, weights: Tensor, x: Tensor, like: Tensor | None = None) -> Tensor:
    if like is not None:
        rows, columns = (like.shape[d] - x.shape[d] for d in (2, 3))
        sides = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
        return F.pad(x, sides, value=word_fraction(node["value"]))
    sides = [node[side] for side in ("left", "right", "top", "bottom")]
    return F.pad(x, sides, value=word_fraction(node["value"]))


def _layer_norm(node: Node, weights: Tensor, x: Tensor) -> Tensor:
    channels = node["channels"]
    constants = (_constant(weights, node[key], channels) for key in ("weight_at", "bias_at"))
    y = F.layer_norm(x.movedim(1, -1), (channels,), *constants, word_fraction(node["eps"]))
    return y.movedim(-1, 1)


def _group_norm(node: Node, weights: Tensor, x: Tensor) -> Tensor:
    constants = (_constant(weights, node[key], node["channels"]) for key in ("weight_at", "bias_at"))
    return F.group_norm(x, node["groups"], *constants, word_fraction(node["eps"]))


def _own_size(node: Node, x: Tensor) -> tuple[int, int]:
    return node["height"] or x.shape[2], node["width"] or x.shape[3]


def _affine(node: Node, weights: Tensor, x: Tensor) -> Tensor:
    scale, shift = (
        _constant(weights, node[key], node["channels"]).view(1, -1, *[1] * (x.dim() - 2))
        for key in ("scale_at", "shift_at")
    )
    return x * scale + shift


def _local_response_norm(node: Node, weights: Tensor, x: Tensor) -> Tensor:
    assert x.dim() == 4
    alpha, beta, k = (word_fraction(node[key]) for key in ("alpha", "beta", "k"))
    return F.local_response_norm(x, node["size"], alpha, beta, k)


_OPERATIONS = {
    Op.CONV2D: _conv2d,
    Op.LINEAR: _linear,
    Op.MAX_POOL2D: _max_pool2d,
    Op.AVG_POOL2D: _avg_pool2d,
    Op.FLATTEN: lambda node, weights, x: x.flatten(1),
    Op.RESHAPE_IMAGE: lambda node, weights, x: x.reshape(-1, node["channels"], node["height"], node["width"]),
    Op.ACTIVATION: lambda node, weights, x: x,
    Op.ADD: _add,
    Op.CONCAT: lambda node, weights, *xs: torch.cat(xs, 1),
    Op.GLOBAL_AVG_POOL: lambda node, weights, x: x.mean((2, 3), keepdim=True),
    Op.AFFINE: _affine,
    Op.LOCAL_RESPONSE_NORM: _local_response_norm,
    Op.MULTIPLY: _multiply,
    Op.SLICE: lambda node, weights, x: x.narrow(1, node["first"], node["channels"]),
    Op.CHANNEL_SHUFFLE: lambda node, weights, x: F.channel_shuffle(x, node["groups"]),
    Op.ADAPTIVE_AVG_POOL2D: lambda node, weights, x: F.adaptive_avg_pool2d(x, _own_size(node, x)),
    Op.ADAPTIVE_MAX_POOL2D: lambda node, weights, x: F.adaptive_max_pool2d(x, _own_size(node, x)),
    Op.PAD: _pad,
    Op.INTERPOLATE: _interpolate,
    Op.LAYER_NORM: _layer_norm,
    Op.GROUP_NORM: _group_norm,
    Op.PRELU: lambda node, weights, x: F.prelu(x, _constant(weights, node["slope_at"], node["channels"])),
    Op.TO_IMAGE: lambda node, weights, x: x[:, :, None, None],
    Op.TO_LINE: lambda node, weights, x: x.squeeze(2),
    Op.CHANNEL_MAX: lambda node, weights, x: x.amax(1, keepdim=True),
    Op.IMAGE_NORM: lambda node, weights, x: torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True),
    Op.CHANNEL_CONV: _channel_conv,
    Op.POWER: lambda node, weights, x: x ** word_fraction(node["exponent"]),
    Op.ATTENTION_POOL: _attention_pool,
    Op.CROP: _crop,
    Op.SOFTMAX: lambda node, weights, x: x.log_softmax(1) if node["logarithm"] else x.softmax(1),
    Op.MIRROR_PAD: _mirror_pad,
    Op.DEPTH_TO_SPACE: _depth_to_space,
}
