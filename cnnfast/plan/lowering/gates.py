"""What gates and attention are made of: reductions over channels, paths and pixels, and softmax, as steps."""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.plan.lowering.context import Lowering, Respelled, Unsupported, Value, lowers, respell
from cnnfast.plan.lowering.pixels import check_features_of_one_pixel
from cnnfast.plan.nodes import Act, Op
from cnnfast.plan.steps import Step, pointwise_step

_PATHS = "a plan of this version knows softmax over channels, over two paths, and over the pixels of a plane"


def over_channels(low: Lowering, input: fx.Node, dim: object) -> Step | None:
    """The image whose channels a reduction over dim combines; None where it combines others."""
    found, rank = low.value(input), len(low.shape(input))
    dims = [d % rank for d in (dim if isinstance(dim, (tuple, list)) else [dim]) if isinstance(d, int)]
    if isinstance(found, Step) and rank == 4 and dims == [1]:
        return found
    if isinstance(found, Respelled) and found.kind == "nhwc" and dims == [3]:
        return found.step
    return None


def of_channels(low: Lowering, input: fx.Node, reduced: Step, keepdim: bool) -> Value:
    """What a reduction over channels gives, one channel, in the shape that the tensor has."""
    found = low.value(input)
    if keepdim:
        return respell(found, reduced)
    return Respelled("plane", low.place(reduced))


def weighted_channels(low: Lowering, input: fx.Node, source: Step, weight: float) -> Step:
    """The sum over channels times a number."""
    channels = low.shape(input)[1 if isinstance(low.value(input), Step) else 3]
    return pointwise_step(source, torch.full((1, channels, 1, 1), weight, dtype=torch.float64))


@lowers(torch.sum, methods=["sum"])
def _sum(low: Lowering, input, dim=None, keepdim=False, dtype=None) -> Value:
    found, shape = low.value(input), low.shape(input)
    if dtype is not None:
        raise Unsupported("it changes the dtype")
    dims = list(dim) if isinstance(dim, (tuple, list)) else [dim]
    if isinstance(found, Respelled) and found.kind == "grouped" and dims in ([1], [-4]) and not keepdim:
        paths = _paths(low, found.step, found.groups, shape[2])
        total = paths[0]
        for path in paths[1:]:
            total = low.place(Step(Op.ADD, [total, path]))
        return total
    source = over_channels(low, input, dim)
    if source is None:
        raise Unsupported(f"it sums {shape} over {dim}; a plan of this version sums channels and paths only")
    return of_channels(low, input, weighted_channels(low, input, source, 1.0), keepdim)


def _paths(low: Lowering, step: Step, count: int, channels: int) -> list[Step]:
    """Channels by paths that lie side by side."""
    settings = ({"first": i * channels, "channels": channels} for i in range(count))
    return [low.place(Step(Op.SLICE, [step], part)) for part in settings]


@lowers(torch.max, methods=["max"])
def _max(low: Lowering, input, dim=None, keepdim=False) -> list:
    """Values alone: indices are no value of a plan."""
    if low.is_line(input) and dim in (2, -1):
        largest = Step(Op.ADAPTIVE_MAX_POOL2D, [low.line(input)], {"height": 1, "width": 1})
        return [Respelled("line", largest) if keepdim else Step(Op.FLATTEN, [low.place(largest)])]
    source = over_channels(low, input, dim)
    if source is None:
        raise Unsupported(f"it takes maxima over {dim}; a plan of this version knows those over channels")
    return [of_channels(low, input, Step(Op.CHANNEL_MAX, [source]), keepdim)]


@lowers(modules=[nn.GLU], lines=True)
def _glu_module(low: Lowering, layer: nn.GLU, x: fx.Node) -> Step:
    return _glu(low, x, layer.dim)


@lowers(F.glu, lines=True)
def _glu(low: Lowering, input, dim=-1) -> Step:
    """Half of the channels times the sigmoid of the others."""
    source, shape = low.image(input), low.shape(input)
    if dim not in (1, 1 - len(shape)):
        raise Unsupported(f"it gates along dimension {dim}; a plan of this version knows channels (1) only")
    half = shape[1] // 2
    value, gate = (low.place(Step(Op.SLICE, [source], {"first": at, "channels": half})) for at in (0, half))
    gate = low.place(Step(Op.ACTIVATION, [gate], activation=Act.SIGMOID))
    return Step(Op.MULTIPLY, [value, gate])


@lowers(getattr)
def _getattr(low: Lowering, input, name) -> Value:
    found = low.value(input)
    if isinstance(found, list) and name == "values":
        return found[0]
    raise Unsupported(f"it asks for '{name}' of a value")


@lowers(torch.stack)
def _stack(low: Lowering, tensors, dim=0) -> Value:
    if dim not in (1, -4) or not isinstance(tensors, (tuple, list)):
        raise Unsupported("a plan of this version stacks images on dimension 1 only")
    images = [low.image(tensor) for tensor in tensors]
    return Respelled("grouped", Step(Op.CONCAT, images), len(images))


@lowers(modules=[nn.Softmax, nn.LogSoftmax, nn.Softmax2d])
def _softmax_module(low: Lowering, layer: nn.Module, x: fx.Node) -> Value:
    dim = 1 if isinstance(layer, nn.Softmax2d) else layer.dim
    return (_log_softmax if isinstance(layer, nn.LogSoftmax) else _softmax)(low, x, dim)


@lowers(F.log_softmax, torch.log_softmax, methods=["log_softmax"])
def _log_softmax(low: Lowering, input, dim=None, _stacklevel=3, dtype=None) -> Value:
    if dtype is not None:
        raise Unsupported("it changes the dtype")
    return _over_classes(low, input, dim, logarithm=1)


def _over_classes(low: Lowering, input: fx.Node, dim: object, logarithm: int) -> Value:
    found, rank = low.value(input), len(low.shape(input))
    nhwc = isinstance(found, Respelled) and found.kind == "nhwc"
    own = 3 if nhwc else 1
    plain = nhwc or low.is_line(input) or isinstance(found, Step)
    if not isinstance(dim, int) or dim % rank != own or not plain:
        raise Unsupported(_PATHS)
    step = found.step if isinstance(found, Respelled) else found
    if rank == 2:
        check_features_of_one_pixel(step)
    return respell(found, Step(Op.SOFTMAX, [step], {"logarithm": logarithm}))


@lowers(F.softmax, torch.softmax, methods=["softmax"])
def _softmax(low: Lowering, input, dim=None, _stacklevel=3, dtype=None) -> Value:
    found, shape = low.value(input), low.shape(input)
    if not isinstance(dim, int) or dtype is not None:
        raise Unsupported(_PATHS)
    if not isinstance(found, Respelled) or found.kind in ("nhwc", "line"):
        return _over_classes(low, input, dim, logarithm=0)
    dim = dim % len(shape)
    if found.kind == "pixels" and dim == len(shape) - 1 and shape[1:-1] == [1] * (len(shape) - 2):
        return Respelled("attention", found.step)
    paths = found.kind == "grouped" and dim == 1
    halves = found.kind == "vector" and shape[1:dim] == [1] * (dim - 1)
    if not (paths or halves) or shape[dim] != 2:
        raise Unsupported(_PATHS)
    channels = 1
    for size in shape[dim + 1 : 3 if paths else None]:
        channels *= size
    return respell(found, _softmax_of_two(low, *_paths(low, found.step, 2, channels), channels))


def _softmax_of_two(low: Lowering, a: Step, b: Step, channels: int) -> Step:
    """exp(a) / (exp(a) + exp(b)) is sigmoid(a - b)."""
    difference = low.place(Step(Op.ADD, [a, _negative(low, b, channels)]))
    shares = [difference, _negative(low, difference, channels)]
    return Step(Op.CONCAT, [low.place(Step(Op.ACTIVATION, [x], activation=Act.SIGMOID)) for x in shares])


def _negative(low: Lowering, x: Step, channels: int) -> Step:
    minus, zero = (torch.full((channels,), value, dtype=torch.float64) for value in (-1.0, 0.0))
    return low.place(Step(Op.AFFINE, [x], {"channels": channels}, {"scale": minus, "shift": zero}))


@lowers(torch.norm, methods=["norm"])
def _norm(low: Lowering, input, p="fro", dim=None, keepdim=False, out=None, dtype=None) -> Value:
    if out is not None:
        raise Unsupported("it writes into a tensor of its own (out)")
    return _image_norm(low, input, 2 if p == "fro" else p, dim, keepdim, dtype)


@lowers(torch.linalg.vector_norm, torch.linalg.norm)
def _vector_norm(low: Lowering, x, ord=2, dim=None, keepdim=False, *, dtype=None) -> Value:
    return _image_norm(low, x, ord, dim, keepdim, dtype)


def _image_norm(low: Lowering, x: fx.Node, p: object, dim: object, keepdim: object, dtype: object) -> Value:
    found, rank = low.value(x), len(low.shape(x))
    nhwc = isinstance(found, Respelled) and found.kind == "nhwc"
    dims = sorted(d % rank for d in dim) if isinstance(dim, (tuple, list)) else dim
    plain = nhwc or (isinstance(found, Step) and rank == 4)
    if not plain or dims != ([1, 2] if nhwc else [2, 3]) or p != 2 or keepdim is not True or dtype:
        raise Unsupported(
            f"it takes norm {p} over {dim}; a plan of this version knows norm 2 over images, keepdim=True"
        )
    return respell(found, Step(Op.IMAGE_NORM, [found.step if nhwc else found]))


def channel_conv(low: Lowering, conv: nn.Conv1d, x: fx.Node) -> Value:
    """One filter over the channels of one pixel, (N, 1, C)."""
    found, shape = low.value(x), low.shape(x)
    taps = conv.kernel_size[0]
    vector = isinstance(found, Respelled) and found.kind == "vector" and len(shape) == 3 and shape[1] == 1
    window = (conv.stride, conv.dilation, conv.padding_mode, conv.out_channels)
    same = conv.padding in ("same", (taps // 2,)) and taps % 2 == 1
    if not vector or window != ((1,), (1,), "zeros", 1) or not same:
        raise Unsupported(
            f"its input has shape {shape}: a plan of this version knows convolutions of lines (N, C, L), and "
            "one filter of an odd number of taps over the channels of one pixel, (N, 1, C), with as many "
            "channels behind it"
        )
    constants = {"weight": conv.weight.reshape(-1), "bias": conv.bias}
    return respell(found, Step(Op.CHANNEL_CONV, [found.step], {"taps": taps}, constants))


@lowers(operator.matmul, torch.matmul, torch.bmm, methods=["matmul", "bmm"])
def _matmul(low: Lowering, input, other) -> Value:
    """Pixels, (N, C, H * W), times their softmax, (N, H * W, 1)."""
    values = [low.value(argument) for argument in (input, other)]
    kinds = [value.kind if isinstance(value, Respelled) else "" for value in values]
    if kinds != ["pixels", "attention"] or low.shape(other)[-1] != 1:
        raise Unsupported("a plan of this version multiplies pixels by the softmax over them only")
    pooled = Step(Op.ATTENTION_POOL, [value.step for value in values])
    return Respelled("vector", pooled)


def mean_over_channels(low: Lowering, input: fx.Node, dim: object, keepdim: bool) -> Value | None:
    """x.mean(1) of images; None where the mean is another."""
    source = over_channels(low, input, dim)
    if source is None:
        return None
    channels = low.shape(input)[1 if isinstance(low.value(input), Step) else 3]
    return of_channels(low, input, weighted_channels(low, input, source, 1.0 / channels), keepdim)


def largest_channel(low: Lowering, input: fx.Node, dim: object, keepdim: bool) -> Value | None:
    """x.amax(1) of images; None where the maximum is another."""
    source = over_channels(low, input, dim)
    if source is None:
        return None
    return of_channels(low, input, Step(Op.CHANNEL_MAX, [source]), keepdim)
