"""Reshaping, concatenation and what does nothing in evaluation, as steps."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.nn.reshape import reshape_image
from cnnfast.plan.lowering.channels import reshaped
from cnnfast.plan.lowering.context import Lowering, Respelled, Unsupported, Value, lowers
from cnnfast.plan.lowering.pixels import gives_one_pixel
from cnnfast.plan.nodes import Op
from cnnfast.plan.steps import Step

_DROPOUTS = [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout]


@lowers(modules=[nn.Identity, *_DROPOUTS])
def _nothing_module(low: Lowering, layer: nn.Module, x: fx.Node) -> Value:
    return low.value(x)


@lowers(torch.clone, torch.detach, methods=["contiguous", "clone", "detach", "float"])
def _nothing(low: Lowering, input, memory_format=None) -> Value:
    return low.value(input)


@lowers(methods=["to", "type"])
def _to(low: Lowering, input, *kinds, memory_format=None, **named) -> Value:
    """Nothing, where a tensor becomes what it is: float32 on the CPU."""
    for kind in (*kinds, *named.values()):
        kind = low.kind(kind) if isinstance(kind, fx.Node) else kind
        if kind not in (torch.float32, torch.device("cpu"), "cpu", False, None):
            raise Unsupported(f"it becomes {kind}: values of a plan are float32 on the CPU")
    return low.value(input)


@lowers(F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout)
def _dropout(low: Lowering, input, p=0.5, training=True, inplace=False) -> Value:
    if training is not False and p != 0:
        raise Unsupported("it drops values in evaluation too: pass training=self.training")
    return low.value(input)


@lowers(named=["torchvision.ops.stochastic_depth.stochastic_depth"])
def _stochastic_depth(low: Lowering, input, p, mode, training=True) -> Value:
    return _dropout(low, input, p, training)


@lowers(modules=[nn.Flatten])
def _flatten_module(low: Lowering, layer: nn.Flatten, x: fx.Node) -> Step:
    return _flatten(low, x, layer.start_dim, layer.end_dim)


@lowers(torch.flatten, methods=["flatten"])
def _flatten(low: Lowering, input, start_dim=0, end_dim=-1) -> Value:
    rank = len(low.shapes[input])
    if isinstance(low.value(input), Respelled) or start_dim % rank > 1:
        value = reshaped(low, input, list(low.shapes[low.node]))
        if value is not None:
            return value
    if start_dim != 1 or end_dim not in (-1, rank - 1):
        raise Unsupported(
            f"a plan of this version flattens from dimension 1 to the last, not {start_dim} to {end_dim}"
        )
    return _to_features(low, input)


def _to_features(low: Lowering, x: fx.Node) -> Step:
    """(N, features) of an image; features stay."""
    if low.is_line(x):
        return Step(Op.FLATTEN, [low.line(x)])
    step = low.step(x)
    if len(low.shapes[x]) == 2:
        return step
    return Step(Op.FLATTEN, [low.image(x)])


@lowers(torch.reshape, methods=["view", "reshape"])
def _reshape(low: Lowering, input, *shape, **kwargs) -> Value:
    shape = kwargs.get("shape", shape)
    shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    value = reshaped(low, input, list(low.shapes[low.node]))
    if value is not None and _keeps_images(low, shape):
        return value
    if len(shape) == 2 and _keeps_batch(low, shape[0], shape[1], low.features(input)):
        return _to_features(low, input)
    if len(shape) == 4 and all(isinstance(size, int) for size in shape[1:]) and min(shape[1:]) > 0:
        return _to_images(low, input, shape[0], *shape[1:])
    raise Unsupported(
        f"it reshapes to {_words(shape)}; a plan knows flattening, x.view(x.size(0), -1), and images "
        "right behind the "
        "input, x.view(-1, C, H, W)"
    )


def _keeps_images(low: Lowering, shape: tuple) -> bool:
    """Whether the number of images is not written into a shape."""
    return low.is_batch_size(shape[0]) or (shape[0] == -1 and all(size != -1 for size in shape[1:]))


def _keeps_batch(low: Lowering, batch: object, rest: object, features: int) -> bool:
    """Whether (batch, rest) is one row per image for every batch size."""
    if low.is_batch_size(batch):
        return rest in (-1, features)
    return batch == -1 and rest == features


def _to_images(low: Lowering, x: fx.Node, batch: object, channels: int, height: int, width: int) -> Step:
    source = low.line(x) if low.is_line(x) else low.step(x)
    if source.op is not Op.INPUT:
        raise Unsupported("it makes images out of values inside the network")
    if low.is_batch_size(batch) and len(low.shapes[x]) == 2:
        source.settings["channels"] = channels * height * width
    elif batch == -1:
        low.free_inputs.add(source)
    else:
        raise Unsupported("the number of images is written into it: use x.view(-1, C, H, W)")
    return Step(Op.RESHAPE_IMAGE, [source], {"channels": channels, "height": height, "width": width})


@lowers(modules=[nn.Unflatten])
def _unflatten_module(low: Lowering, layer: nn.Unflatten, x: fx.Node) -> Step:
    sizes = layer.unflattened_size
    if layer.dim != 1 or len(low.shapes[x]) != 2 or len(sizes) != 3 or min(sizes) < 1:
        raise Unsupported(
            "a plan knows it right behind an input (N, features) only, as Unflatten(1, (C, H, W))"
        )
    source = low.step(x)
    if source.op is not Op.INPUT:
        raise Unsupported("it makes images out of values inside the network")
    source.settings["channels"] = low.features(x)
    return Step(Op.RESHAPE_IMAGE, [source], dict(zip(("channels", "height", "width"), sizes, strict=True)))


@lowers(reshape_image)
def _reshape_image(low: Lowering, input, channels, height, width) -> Step:
    return _to_images(low, input, -1, channels, height, width)


@lowers(torch.cat, torch.concat, torch.concatenate, lines=True)
def _concat(low: Lowering, tensors, dim=0) -> Value:
    if not isinstance(tensors, (tuple, list)):
        raise Unsupported("it concatenates a list that is computed in the forward")
    if dim in (3, -1) and all(_is_channels_last(low, tensor) for tensor in tensors):
        return Respelled("nhwc", Step(Op.CONCAT, [low.value(tensor).step for tensor in tensors]))
    if dim in (1, -1) and all(len(low.shape(tensor)) == 2 for tensor in tensors):
        return Step(Op.CONCAT, [_features(low, tensor) for tensor in tensors])
    steps = [low.image(tensor) for tensor in tensors]
    if dim not in (1, 1 - len(low.shape(tensors[0]))):
        raise Unsupported(
            f"it concatenates on dimension {dim}; a plan of this version knows channels (1) only"
        )
    return Step(Op.CONCAT, steps)


def _features(low: Lowering, tensor: fx.Node) -> Step:
    step = low.step(tensor)
    if not gives_one_pixel(step):
        raise Unsupported("it concatenates flattened images: a plan knows features and images")
    return step


def _is_channels_last(low: Lowering, tensor: fx.Node) -> bool:
    found = low.value(tensor)
    return isinstance(found, Respelled) and found.kind == "nhwc"


def _words(shape: tuple) -> str:
    return "(" + ", ".join(size.name if isinstance(size, fx.Node) else str(size) for size in shape) + ")"
