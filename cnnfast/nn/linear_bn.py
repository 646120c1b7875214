"""Fully connected layer, batch normalisation and activation as one module."""

from typing import Optional

import torch
from torch import Tensor, nn

from cnnfast.nn._checks import check_activation, check_bn_features, check_linear_module
from cnnfast.nn._holders import check_scriptable, must_be_called
from cnnfast.nn.conv_bn import conv_bn_act
from cnnfast.reference.activation import activate


@torch.fx.wrap
def linear_bn_act(
    input: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    bn_weight: Optional[Tensor],
    bn_bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    batches_tracked: Optional[Tensor],
    training: bool,
    track_running_stats: bool,
    momentum: Optional[float],
    eps: float,
    activation: str,
) -> Tensor:
    """What LinearBNAct computes, bookkeeping of torch.nn.BatchNorm1d included; one call in an FX graph."""
    if input.dim() != 2:
        raise RuntimeError(
            "LinearBNAct: input has shape " + str(list(input.shape)) + ", but must be (N, in_features)"
        )
    output = conv_bn_act(  # a row of the batch is an image of one pixel
        input.unsqueeze(-1).unsqueeze(-1),
        None,
        weight.unsqueeze(-1).unsqueeze(-1),
        bias,
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        batches_tracked,
        training,
        track_running_stats,
        momentum,
        eps,
        [],
        "constant",
        [1, 1],
        [0, 0],
        [1, 1],
        1,
        activation,
    )
    return output.flatten(1)


class LinearBNAct(nn.Module):
    """act(BatchNorm1d(Linear(input))) in one pass; runs as a 1×1 convolution.

    Arguments as torch.nn.Linear, as torch.nn.BatchNorm1d (eps, momentum, affine, track_running_stats), and
    activation: "none", "relu" or "sigmoid". Input (N, in_features), output (N, out_features).

    The parameters and running averages are those of the children `linear` and `bn`, as in ConvBNAct2d.

    Raises ValueError for an unknown activation; RuntimeError for an input of another rank.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, as in the course notes; torch.nn.BatchNorm1d.
    """

    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        *,
        activation="relu",
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        linear = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        bn = nn.BatchNorm1d(
            out_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self._adopt(linear, bn, activation)

    @classmethod
    def from_modules(cls, linear: nn.Linear, bn: nn.BatchNorm1d, activation: str = "relu") -> "LinearBNAct":
        """The fused layer around existing modules, which become its children: tensors are shared."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._adopt(linear, bn, activation)
        layer.training = linear.training
        return layer

    def _adopt(self, linear: nn.Linear, bn: nn.BatchNorm1d, activation: str) -> None:
        name = type(self).__name__
        check_activation(name, activation)
        check_linear_module(name, linear)
        check_bn_features(name, bn, linear.out_features, "linear gives", "BatchNorm1d")
        self.linear = linear
        self.bn = bn
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if must_be_called(self.linear, nn.Linear) or must_be_called(self.bn, nn.BatchNorm1d):
                return activate(self.bn(self.linear(input)), self.activation)
        return linear_bn_act(
            input,
            self.linear.weight,
            self.linear.bias,
            self.bn.weight,
            self.bn.bias,
            self.bn.running_mean,
            self.bn.running_var,
            self.bn.num_batches_tracked,
            self.bn.training,
            self.bn.track_running_stats,
            self.bn.momentum,
            self.bn.eps,
            self.activation,
        )

    def __prepare_scriptable__(self) -> nn.Module:
        check_scriptable(self, linear=nn.Linear, bn=nn.BatchNorm1d)
        return self

    def extra_repr(self) -> str:
        return f"activation={self.activation}"
