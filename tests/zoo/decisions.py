"""Gradients in float64 under the decisions of another run: which ReLUs are on, where maxima lie."""

import copy

import torch.nn.functional as F
from torch import Tensor, fx, nn

from cnnfast.fuse.check import _Recorder
from cnnfast.fuse.convert import Converter, Unit
from cnnfast.fuse.kinds import activation_of, module_of
from cnnfast.fuse.shells import unfused

from .measure import gradients


class Decided(nn.Module):
    """`model` in float64, whose ReLUs and max pools decide as those of its fused copy do.

    For networks that are fused as one unit, whose ReLUs and max pools end their fused calls.
    """

    def __init__(self, model: nn.Module, images: Tensor):
        super().__init__()
        unit, fused = _fused(model)
        recorder = _Recorder(fused, unit.fused, {after for _, after in unit.values.values()})
        recorder.run(images)  # gradients recorded, since kernels may differ where they are
        self.decided = {before: recorder.values[after].detach() for before, after in unit.values.values()}
        self.graph, self.flips, self.units = unit.eager, 0, 0
        for name, child in copy.deepcopy(model).double().eval().named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        self.flips = self.units = 0
        return _Interpreter(self).run(x)


def _fused(model: nn.Module) -> tuple[Unit, nn.Module]:
    network = unfused(model)
    converter = Converter(network, lambda name, module: True)
    converter.joins_chains = False
    converter.run()
    (unit,) = converter.units
    assert unit.path == ""
    return unit, network.eval()


class _Interpreter(fx.Interpreter):
    def __init__(self, network: Decided):
        super().__init__(network, graph=network.graph)
        self.network = network

    def run_node(self, node: fx.Node):
        layer = module_of(node, self.network) if node.op == "call_module" else None
        if activation_of(node, self.network) == "relu":
            return self.relu(self.env[node.args[0]], self.network.decided[node.name] > 0)
        if isinstance(layer, nn.MaxPool2d):
            return self.max_pool(layer, self.env[node.args[0]], self.network.decided[node.args[0].name])
        return super().run_node(node)

    def relu(self, x: Tensor, on: Tensor) -> Tensor:
        self.network.flips += (on != (x > 0)).sum().item()
        self.network.units += x.numel()
        return x * on

    def max_pool(self, layer: nn.MaxPool2d, x: Tensor, decided: Tensor) -> Tensor:
        window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
        _, largest = F.max_pool2d(decided, *window, return_indices=True)
        return x.flatten(2).gather(2, largest.flatten(2)).view(largest.shape)


def decided_gradients(network: Decided, images: Tensor) -> dict[str, Tensor]:
    return gradients(network, images.double())
