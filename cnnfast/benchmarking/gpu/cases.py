"""What is measured on a GPU: operators of cnnfast.ops at shapes of ResNet, GoogLeNet and DenseNet; networks.

An operator's plain form is its namesake in cnnfast.reference: torch.nn.functional, one call after the other.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnnfast import fuse, ops, reference
from cnnfast.ops.inception import conv_stage, encode_branches, pool_stage

from ..plain import INPUT_SHAPES, get_plain

Call = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Case:
    """kind: the operator's name, "inference" or "training". tolerance: of comparisons, as a multiple."""

    name: str
    kind: str
    make: Callable[[torch.device], "Work"]
    tolerance: float = 1.0


class Work:
    """A case with its tensors on a device."""

    operations: float  # multiply-adds count two; 0 where nobody counted
    training: bool

    def call(self, contender: str, dtype: torch.dtype) -> Call | None:
        """What to time, or None where the contender has no such thing. "reference" is eager as well."""
        raise NotImplementedError

    def bytes(self, itemsize: int) -> float:
        """Every operand and result once; 0 where nobody counted."""
        raise NotImplementedError


class OperatorWork(Work):
    """inputs: float32. The functions take them in order; where `training`, a step is forward and backward."""

    def __init__(
        self,
        inputs: list[Tensor],
        plain: Callable,
        ours: Callable,
        cudnn: Callable | None = None,
        *,
        operations: float = 0.0,
        training: bool = False,
    ) -> None:
        self.inputs, self.training = inputs, training
        self.functions = {"cudnn_fused": cudnn, "cnnfast": ours}
        self.plain = plain
        self.operations = operations * (3 if training else 1)
        with torch.no_grad():
            self.outputs = plain(*inputs)

    def call(self, contender: str, dtype: torch.dtype) -> Call | None:
        function = self.functions.get(contender, self.plain)
        if function is None:
            return None
        layout = torch.contiguous_format if contender in ("reference", "eager") else torch.channels_last
        inputs = [_copy(tensor, dtype, layout, self.training) for tensor in self.inputs]
        if contender == "compile":
            function = compiled(function)
        if not self.training:
            return lambda: [function(*inputs)]
        random = torch.Generator().manual_seed(1)
        cotangent = torch.randn(self.outputs.shape, generator=random)
        cotangent = _copy(cotangent.to(self.outputs.device), dtype, layout, False)

        def step() -> list[Tensor]:
            output = function(*inputs)
            return [output.detach(), *torch.autograd.grad(output, inputs, cotangent)]

        return step

    def bytes(self, itemsize: int) -> float:
        elements = sum(tensor.numel() for tensor in self.inputs) + self.outputs.numel()
        # Backward: the output's gradient and the inputs are read, the inputs' gradients written.
        return float(itemsize * elements * (3 if self.training else 1))


class NetworkWork(Work):
    """A plain network in evaluation or training mode, and the same fused."""

    operations = 0.0

    def __init__(self, name: str, batch: int, training: bool, device: torch.device) -> None:
        torch.manual_seed(0)
        self.network = get_plain(name).to(device).train(training)
        self.image = torch.randn(batch, *INPUT_SHAPES[name], device=device)
        self.training = training
        with torch.no_grad():
            self.network(self.image)  # lazy layers know their sizes afterwards
        for module in self.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # else no two contenders compute the same

    def call(self, contender: str, dtype: torch.dtype) -> Call | None:
        if contender == "cudnn_fused":
            return None
        layout = torch.contiguous_format if contender in ("reference", "eager") else torch.channels_last
        network = copy.deepcopy(self.network).to(dtype).to(memory_format=layout)
        image = _copy(self.image, dtype, layout, False)
        if contender == "cnnfast":
            network = fuse(network).train(self.training)
        if contender == "compile":
            network = compiled(network)
        if not self.training:
            return lambda: [network(image)]
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]

        def step() -> list[Tensor]:
            output = network(image)
            gradients = torch.autograd.grad(output.float().square().mean(), parameters)
            norms = torch.stack([gradient.double().norm() for gradient in gradients])
            return [output.detach(), norms.norm()]

        return step

    def bytes(self, itemsize: int) -> float:
        return 0.0


def compiled(function: Callable) -> Callable:
    """torch.compile's best. Graphs of its own would hide launches: the timer replays graphs for everyone."""
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)


def operator_cases(batch: int = 32, scale: int = 1) -> list[Case]:
    """scale divides channels and sizes: small cases for tests."""

    def images(channels: int, size: int) -> tuple[int, int, int, int]:
        return batch, max(8, channels // scale), max(7, size // scale), max(7, size // scale)

    cases = []
    for channels, size, out, kernel, stride, residual in (
        (64, 56, 64, 3, 1, True),
        (256, 56, 64, 1, 1, False),
        (128, 28, 512, 1, 1, True),
        (256, 14, 256, 3, 1, False),
        (32, 28, 96, 5, 1, False),
        (512, 28, 1024, 1, 2, False),
    ):
        shape, out = images(channels, size), max(8, out // scale)
        cases += _convolutions(shape, out, kernel, stride, residual)
    for channels, size in ((256, 56), (1024, 14)):
        cases += _norms(images(channels, size))
    cases += (
        _pools(images(192, 56)) + _blocks(images(192, 28)) + [_linear(batch, 2048 // scale, 1000 // scale)]
    )
    return cases


def network_cases(batch: int = 32, names: tuple[str, ...] = tuple(INPUT_SHAPES)) -> list[Case]:
    """Every plain network, evaluated and trained."""
    cases = []
    for name in names:
        for mode in ("inference", "training"):

            def make(device, name=name, mode=mode) -> Work:
                return NetworkWork(name, batch, mode == "training", device)

            cases.append(Case(f"{name}, batch {batch}", mode, make, tolerance=4.0))
    return cases


def _case(
    label: str, operator: str, shapes: list[tuple[int, ...]], plain, ours, cudnn=None, **options
) -> Case:
    def make(device: torch.device) -> Work:
        random = torch.Generator().manual_seed(0)
        inputs = [_fill(shape, random).to(device) for shape in shapes]
        return OperatorWork(inputs, plain, ours, cudnn, **options)

    return Case(label, operator, make)


def _convolutions(shape, out: int, kernel: int, stride: int, residual: bool) -> list[Case]:
    batch, channels, size, _ = shape
    geometry = {"stride": [stride, stride], "padding": [kernel // 2, kernel // 2]}
    out_size = (size + 2 * (kernel // 2) - kernel) // stride + 1
    result = (batch, out, out_size, out_size)
    weight = (out, channels, kernel, kernel)
    operations = 2.0 * math.prod(result) * channels * kernel * kernel
    label = f"{channels} → {out}, {kernel}×{kernel}, stride {stride}, {size}²" + (
        " + residual" if residual else ""
    )
    added = [result] if residual else []

    def conv(module):
        def run(x, w, b, r=None):
            return module.conv2d(x, w, b, None, r, activation="relu", **geometry)

        return run

    def cudnn(x, w, b, r=None):
        sizes = (geometry["stride"], geometry["padding"], [1, 1], 1)
        if r is None:
            return torch.cudnn_convolution_relu(x, w, b, *sizes)
        return torch.cudnn_convolution_add_relu(x, w, r, 1.0, b, *sizes)

    def folded(module):
        def run(x, w, s, b, r=None):
            return module.conv2d(x, w, b, s, r, activation="relu", **geometry)

        return run

    def evaluated(module):
        def run(x, w, gain, b, r=None):
            mean, var = torch.zeros_like(gain), torch.ones_like(gain)
            return module.conv2d_bn_act(x, w, None, gain, b, mean, var, r, activation="relu", **geometry)

        return run

    def trained(module):
        def run(x, w, gain, b, r=None):
            return module.conv2d_batch_norm(x, w, None, gain, b, r, activation="relu", **geometry)[0]

        return run

    def pre_activated(module):
        def run(x, w, gain, b):
            return module.bn_act_conv2d(x, w, None, gain, b, None, None, None, training=True, **geometry)

        return run

    vector, before = (out,), (channels,)
    both = {"operations": operations}
    step = {"operations": operations, "training": True}
    plain, mine = reference, ops
    return [
        _case(label, "conv2d", [shape, weight, vector, *added], conv(plain), conv(mine), cudnn, **both),
        _case(
            f"{label}, scaled",
            "conv2d",
            [shape, weight, vector, vector, *added],
            folded(plain),
            folded(mine),
            **both,
        ),
        _case(f"{label}, step", "conv2d", [shape, weight, vector, *added], conv(plain), conv(mine), **step),
        _case(
            label,
            "conv2d_bn_act",
            [shape, weight, vector, vector, *added],
            evaluated(plain),
            evaluated(mine),
            **both,
        ),
        _case(
            f"{label}, step",
            "conv2d_batch_norm",
            [shape, weight, vector, vector, *added],
            trained(plain),
            trained(mine),
            **step,
        ),
        _case(
            f"{label}, step",
            "bn_act_conv2d",
            [shape, weight, before, before],
            pre_activated(plain),
            pre_activated(mine),
            **step,
        ),
    ]


def _norms(shape) -> list[Case]:
    _, channels, size, _ = shape
    label, vector = f"{channels} channels, {size}²", (channels,)

    def batch_norm(module, training: bool):
        def run(x, gain, b, r):
            mean, var = torch.zeros_like(gain), torch.ones_like(gain)
            return module.batch_norm2d(x, gain, b, mean, var, r, training=training, activation="relu")

        return run

    def lrn(module):
        return lambda x: module.local_response_norm(x, 5, 1e-4, 0.75, 2.0)

    def by_groups(module):
        return lambda x, gain, b: module.group_norm2d(x, math.gcd(32, shape[1]), gain, b, activation="silu")

    def by_channels(module):
        return lambda x, gain, b: module.instance_norm2d(x, None, None, gain, b, activation="relu")

    shapes = [shape, vector, vector, shape]
    count = 8.0 * math.prod(shape)
    cases = []
    for training in (False, True):
        functions = batch_norm(reference, training), batch_norm(ops, training)
        name = f"{label} + residual" + (", step" if training else "")
        cases.append(_case(name, "batch_norm2d", shapes, *functions, operations=count, training=training))
        name = label + (", step" if training else "")
        for kind, function, own in (
            ("local_response_norm", lrn, [shape]),
            ("group_norm2d", by_groups, shapes[:3]),
            ("instance_norm2d", by_channels, shapes[:3]),
        ):
            functions = function(reference), function(ops)
            cases.append(_case(name, kind, own, *functions, operations=count, training=training))
    return cases


def _pools(shape) -> list[Case]:
    _, channels, size, _ = shape
    cases = []
    for training in (False, True):
        for name, options in (
            ("max_pool2d", {"kernel_size": 3, "stride": 2, "padding": [1, 1]}),
            ("avg_pool2d", {"kernel_size": 3, "stride": 1, "padding": [1, 1]}),
            ("global_avg_pool2d", {}),
        ):
            plain, mine = (_with_options(getattr(module, name), options) for module in (reference, ops))
            label = f"{channels} channels, {size}²" + (", step" if training else "")
            cases.append(_case(label, name, [shape], plain, mine, training=training))
    return cases


def _with_options(function, options: dict):
    return lambda x: function(x, **options)


def _blocks(shape) -> list[Case]:
    batch, channels, size, _ = shape
    branches = encode_branches(
        [
            [conv_stage(1, activation="relu")],
            [conv_stage(1, activation="relu"), conv_stage(3, padding=1, activation="relu")],
            [conv_stage(1, activation="relu"), conv_stage(5, padding=2, activation="relu")],
            [pool_stage("max", 3, 1, 1), conv_stage(1, activation="relu")],
        ]
    )
    c = channels
    sizes = [(c // 3, c, 1), (c // 2, c, 1), (2 * c // 3, c // 2, 3)]
    sizes += [(c // 12 or 1, c, 1), (c // 6, c // 12 or 1, 5), (c // 6, c, 1)]
    weights = [(out, inner, kernel, kernel) for out, inner, kernel in sizes]
    vectors = [(out,) for out, _, _ in sizes]
    count = len(weights)

    def inception(module):
        def run(x, *parameters):
            return module.inception(x, list(parameters[:count]), list(parameters[count:]), branches)

        return run

    layers, growth = 4, max(8, c // 6)
    dense = [(growth, c + i * growth, 3, 3) for i in range(layers)]
    gains = [(c + i * growth,) for i in range(layers)]

    def dense_block(module):
        def run(x, *parameters):
            lists = [list(parameters[i * layers : (i + 1) * layers]) for i in range(3)]
            none = [None] * layers
            return module.dense_block(x, lists[0], none, lists[1], lists[2], none, none, training=True)

        return run

    pixels = batch * size * size
    cases = []
    for training in (False, True):
        suffix = ", step" if training else ""
        for label, name, make, parameters in (
            (f"{c} channels, {size}²", "inception", inception, [*weights, *vectors]),
            (f"{layers} layers of {growth}, {size}²", "dense_block", dense_block, [*dense, *gains, *gains]),
        ):
            operations = 2.0 * pixels * sum(math.prod(p) for p in parameters if len(p) == 4)
            options = {"operations": operations, "training": training}
            functions = make(reference), make(ops)
            cases.append(_case(label + suffix, name, [shape, *parameters], *functions, **options))
    return cases


def _linear(batch: int, inputs: int, outputs: int) -> Case:
    def linear(module):
        return lambda x, w, b: module.linear(x, w, b, "relu")

    shapes = [(batch, inputs), (outputs, inputs), (outputs,)]
    operations = 2.0 * batch * inputs * outputs
    return _case(
        f"{inputs} → {outputs}", "linear", shapes, linear(reference), linear(ops), operations=operations
    )


def _fill(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=random)
    if len(shape) == 4 and shape[2] == shape[3] <= 7 and shape[0] != shape[2]:
        return values / math.sqrt(math.prod(shape[1:]))  # weights: outputs stay of the inputs' size
    return 1 + 0.1 * values if len(shape) == 1 else values


def _copy(tensor: Tensor, dtype: torch.dtype, layout: torch.memory_format, wants_gradient: bool) -> Tensor:
    result = tensor.detach().to(dtype, copy=True)
    result = result.contiguous(memory_format=layout) if result.dim() == 4 else result
    return result.requires_grad_(wants_gradient)
