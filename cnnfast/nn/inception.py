"""Inception blocks: branches that write into one output."""

from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from cnnfast.nn._checks import check_counts
from cnnfast.nn._holders import check_scriptable, is_as_built, settings_of
from cnnfast.ops.inception import conv_stage, encode_branches, inception, pool_stage
from cnnfast.reference.activation import activate

torch.fx.wrap("inception")


class _Branches(nn.Module):
    """Chains of convolutions and pools that read one input, their outputs concatenated on channels.

    The layers are children, torch.nn.Conv2d, MaxPool2d and AvgPool2d. Their settings are written down once;
    where one has hooks, other settings or is another kind of module by now, all are called themselves.
    """

    branches: List[int]

    def _adopt(self, *chains: Tuple[str, ...], activation: str) -> None:
        """Take the children of these names, branch after branch; the activation follows every convolution."""
        self._chains = chains
        self._activation = activation
        self._built: Dict[str, tuple] = {
            name: settings_of(getattr(self, name)) for chain in chains for name in chain
        }
        self.branches = encode_branches(
            [[_stage(getattr(self, name), activation) for name in chain] for chain in chains]
        )

    def _is_as_built(self) -> bool:
        return all([is_as_built(getattr(self, name), settings) for name, settings in self._built.items()])

    def _call_children(self, input: Tensor) -> Tensor:
        outputs = []
        for chain in self._chains:
            x = input
            for name in chain:
                x = getattr(self, name)(x)
                if self._built[name][0] is nn.Conv2d:
                    x = activate(x, self._activation)
            outputs.append(x)
        return torch.cat(outputs, dim=1)

    def __prepare_scriptable__(self) -> nn.Module:
        check_scriptable(self, **self._built)
        return self


def _stage(layer: nn.Module, activation: str) -> List[int]:
    """A layer as the operator reads it."""
    window = [list(_pair(value)) for value in (layer.kernel_size, layer.stride, layer.padding)]
    if isinstance(layer, nn.Conv2d):
        return conv_stage(*window, groups=layer.groups, activation=activation)
    if isinstance(layer, nn.MaxPool2d):
        return pool_stage("max", *window)
    return pool_stage("avg", *window, count_include_pad=layer.count_include_pad)


class Inception(_Branches):
    """1×1 | 1×1, 3×3 | 1×1, 5×5 | max pool, 1×1; ReLU after every convolution, concatenated on channels.

    Args:
        in_channels: of the input (N, in_channels, H, W).
        c1: channels of the first branch.
        c2, c3: channels of the 1×1 convolution and of the larger one behind it.
        c4: channels of the fourth branch.

    The output is (N, c1 + c2[1] + c3[1] + c4, H, W), written by the branches themselves: nothing is copied.
    The parameters are those of the children, which have the notes' names.

    Raises ValueError for channels below 1.

    Source: Szegedy et al. 2014, "Going deeper with convolutions", arXiv:1409.4842, as in the course notes.
    """

    def __init__(self, in_channels, c1, c2, c3, c4):
        super().__init__()
        (c2_reduced, c2_out), (c3_reduced, c3_out) = c2, c3
        check_counts("Inception", in_channels=in_channels, c1=c1, c4=c4)
        check_counts("Inception", c2_reduced=c2_reduced, c2=c2_out, c3_reduced=c3_reduced, c3=c3_out)
        self.p1_1 = nn.Conv2d(in_channels, c1, 1)
        self.p2_1 = nn.Conv2d(in_channels, c2_reduced, 1)
        self.p2_2 = nn.Conv2d(c2_reduced, c2_out, 3, padding=1)
        self.p3_1 = nn.Conv2d(in_channels, c3_reduced, 1)
        self.p3_2 = nn.Conv2d(c3_reduced, c3_out, 5, padding=2)
        self.p4_1 = nn.MaxPool2d(3, 1, 1)
        self.p4_2 = nn.Conv2d(in_channels, c4, 1)
        self._adopt(("p1_1",), ("p2_1", "p2_2"), ("p3_1", "p3_2"), ("p4_1", "p4_2"), activation="relu")

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if not self._is_as_built():
                return self._call_children(input)
        biases: List[Optional[Tensor]] = [
            self.p1_1.bias,
            self.p2_1.bias,
            self.p2_2.bias,
            self.p3_1.bias,
            self.p3_2.bias,
            self.p4_2.bias,
        ]
        weights = [
            self.p1_1.weight,
            self.p2_1.weight,
            self.p2_2.weight,
            self.p3_1.weight,
            self.p3_2.weight,
            self.p4_2.weight,
        ]
        return inception(input, weights, biases, self.branches)


class InceptionA(_Branches):
    """1×1→16 | 1×1→16, 5×5→24 | 1×1→16, 3×3→24, 3×3→24 | average pool, 1×1→24, without activations.

    (N, in_channels, H, W) to (N, 88, H, W), written by the branches themselves: nothing is copied. The
    parameters are those of the children, which have the notes' names.

    Raises ValueError for channels below 1.

    Source: course notes, the block of the small Inception network; Szegedy et al. 2015, arXiv:1512.00567.
    """

    def __init__(self, in_channels):
        super().__init__()
        check_counts("InceptionA", in_channels=in_channels)
        self.branch_pool = nn.Conv2d(in_channels, 24, 1)
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.branch1x1 = nn.Conv2d(in_channels, 16, 1)
        self.branch5x5_1 = nn.Conv2d(in_channels, 16, 1)
        self.branch5x5_2 = nn.Conv2d(16, 24, 5, padding=2)
        self.branch3x3_1 = nn.Conv2d(in_channels, 16, 1)
        self.branch3x3_2 = nn.Conv2d(16, 24, 3, padding=1)
        self.branch3x3_3 = nn.Conv2d(24, 24, 3, padding=1)
        self._adopt(
            ("branch1x1",),
            ("branch5x5_1", "branch5x5_2"),
            ("branch3x3_1", "branch3x3_2", "branch3x3_3"),
            ("pool", "branch_pool"),
            activation="none",
        )

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if not self._is_as_built():
                return self._call_children(input)
        biases: List[Optional[Tensor]] = [
            self.branch1x1.bias,
            self.branch5x5_1.bias,
            self.branch5x5_2.bias,
            self.branch3x3_1.bias,
            self.branch3x3_2.bias,
            self.branch3x3_3.bias,
            self.branch_pool.bias,
        ]
        weights = [
            self.branch1x1.weight,
            self.branch5x5_1.weight,
            self.branch5x5_2.weight,
            self.branch3x3_1.weight,
            self.branch3x3_2.weight,
            self.branch3x3_3.weight,
            self.branch_pool.weight,
        ]
        return inception(input, weights, biases, self.branches)
