"""A plan in words."""

from cnnfast.plan.nodes import Act, Interpolation, Mirror, Node, Op, Plan, word_fraction


def describe(node: Node) -> str:
    """One node, e.g. "conv2d 16→32 5×5, stride 2 + relu"."""
    words = _WORDS.get(node.op, lambda n: "")(node)
    inputs = (
        " of " + ", ".join(map(str, node.inputs)) if len(node.inputs) > 1 and node.op is not Op.CONV2D else ""
    )
    residual = f" + node {node.inputs[1]}" if node.op is Op.CONV2D and len(node.inputs) == 2 else ""
    activation = f" + {_activation(node)}" if node.activation is not Act.NONE else ""
    return f"{node.op.name.lower()}{words}{inputs}{residual}{activation}"


def lines(plan: Plan, names: list[str]) -> list[str]:
    """A line for each node: number, layers, what it does."""
    width = max(len(name) for name in names)
    return [
        f"{i:3}  {name.ljust(width)}  {describe(node)}"
        for i, (node, name) in enumerate(zip(plan.nodes, names, strict=True))
    ]


def _activation(node: Node) -> str:
    first, second = node.numbers
    if node.activation is Act.CLAMP:
        return "relu6" if node.numbers == (0.0, 6.0) else f"clamp({first:g}, {second:g})"
    numbers = f"({first:g})" if node.activation in (Act.LEAKY_RELU, Act.ELU) else ""
    return node.activation.name.lower() + numbers


def _interpolate(node: Node) -> str:
    words = " " + Interpolation(node["mode"]).name.lower().replace("_", "-")
    if node["height"] or node["width"]:
        words += f" to {node['height']}×{node['width']}"
    return words + (", align_corners" if node["align_corners"] else "")


def _input(node: Node) -> str:
    return f" {node['rank']}-D" + (f", {node['channels']} channels" if node["channels"] > 0 else "")


def _conv(node: Node) -> str:
    channels = node["group_channels"] * node["groups"]
    words = f" {channels}→{node['out_channels']} {node['kernel_h']}×{node['kernel_w']}"
    sides = tuple(node[f"pad_{side}"] for side in ("top", "left", "bottom", "right"))
    padding = sides[:2] if sides[:2] == sides[2:] else sides
    padding = ("same",) if node.pads_to_same else padding
    for name, value, plain in (
        ("stride", (node["stride_h"], node["stride_w"]), 1),
        ("padding", padding, 0),
        ("dilation", (node["dilation_h"], node["dilation_w"]), 1),
        ("groups", (node["groups"],), 1),
    ):
        words += _setting(name, value, plain)
    return words + (", tuned" if node["tuned"] else "")


def _pool(node: Node) -> str:
    words = f" {node['kernel_h']}×{node['kernel_w']}"
    words += _setting("stride", (node["stride_h"], node["stride_w"]), None)
    padding = ("same",) if node.pads_to_same else (node["pad_h"], node["pad_w"])
    words += _setting("padding", padding, 0)
    return words + (", ceil_mode" if node["ceil_mode"] else "")


def _left_out(node: Node) -> str:
    sides = tuple(node[side] for side in ("top", "left", "bottom", "right"))
    return _setting("without", sides, 0)


def _crop(node: Node) -> str:
    words = _left_out(node) + _setting("stride", (node["stride_h"], node["stride_w"]), 1)
    return words.removeprefix(",")


def _local_response_norm(node: Node) -> str:
    return f" size {node['size']}" + "".join(
        f", {name} {word_fraction(node[name]):g}" for name in ("alpha", "beta", "k")
    )


def _setting(name: str, values: tuple[int | str, ...], plain: int | None) -> str:
    """Empty where the values are the ordinary ones."""
    if set(values) == {plain}:
        return ""
    return f", {name} " + (str(values[0]) if len(set(values)) == 1 else str(values))


_WORDS = {
    Op.INPUT: _input,
    Op.CONV2D: _conv,
    Op.LINEAR: lambda node: f" {node['in_features']}→{node['out_features']}",
    Op.MAX_POOL2D: _pool,
    Op.AVG_POOL2D: _pool,
    Op.RESHAPE_IMAGE: lambda node: f" {node['channels']}×{node['height']}×{node['width']}",
    Op.AFFINE: lambda node: f" {node['channels']} channels",
    Op.SLICE: lambda node: f" {node['first']}:{node['first'] + node['channels']}",
    Op.CHANNEL_SHUFFLE: lambda node: f" {node['groups']} groups",
    Op.ADAPTIVE_AVG_POOL2D: lambda node: f" to {node['height']}×{node['width']}",
    Op.ADAPTIVE_MAX_POOL2D: lambda node: f" to {node['height']}×{node['width']}",
    Op.INTERPOLATE: _interpolate,
    Op.LAYER_NORM: lambda node: f" {node['channels']} channels",
    Op.GROUP_NORM: lambda node: f" {node['channels']} channels, {node['groups']} groups",
    Op.PRELU: lambda node: f" {node['channels']} channels",
    Op.LOCAL_RESPONSE_NORM: _local_response_norm,
    Op.MIRROR_PAD: lambda node: f" by {Mirror(node['mode']).name.lower()}",
    Op.CROP: _crop,
    Op.DEPTH_TO_SPACE: lambda node: f" {node['block_h']}×{node['block_w']}{_left_out(node)}",
    Op.SOFTMAX: lambda node: ", logarithm" if node["logarithm"] else "",
    Op.POWER: lambda node: f" {word_fraction(node['exponent']):g}",
    Op.CHANNEL_CONV: lambda node: f" {node['taps']} taps",
}
