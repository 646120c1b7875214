"""Normalisation: batch norm with an activation, and local response normalisation."""

from typing import Optional

import torch
from torch import Tensor, nn

from cnnfast.nn._checks import check_activation, check_bn_kind
from cnnfast.nn._holders import check_scriptable, must_be_called
from cnnfast.nn._statistics import averages, settle, step_of
from cnnfast.ops.batch_norm2d import batch_norm2d
from cnnfast.ops.local_response_norm import local_response_norm
from cnnfast.reference.activation import activate

torch.fx.wrap("local_response_norm")


@torch.fx.wrap
def batch_norm_act(
    input: Tensor,
    residual: Optional[Tensor],
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    batches_tracked: Optional[Tensor],
    training: bool,
    track_running_stats: bool,
    momentum: Optional[float],
    eps: float,
    activation: str,
) -> Tensor:
    """What BatchNormAct2d computes, bookkeeping of torch.nn.BatchNorm2d included; one call in an FX graph."""
    mean = averages(running_mean, training, track_running_stats, momentum)
    var = averages(running_var, training, track_running_stats, momentum)
    output = batch_norm2d(
        input, weight, bias, mean, var, residual, training, step_of(momentum), eps, activation
    )
    settle(running_mean, running_var, mean, var, batches_tracked, training, track_running_stats, momentum)
    return output


class BatchNormAct2d(nn.Module):
    """act(BatchNorm2d(input) + residual) in one pass: (N, C, H, W) to the same shape.

    Arguments as torch.nn.BatchNorm2d, and activation: "none", "relu" or "sigmoid". The parameters and running
    averages are those of the child `bn`; one with hooks, or replaced by another kind of module
    (SyncBatchNorm), is called itself.

    Raises ValueError for an unknown activation.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, as in the course notes; torch.nn.BatchNorm2d.
    """

    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        *,
        activation="relu",
        device=None,
        dtype=None,
    ):
        super().__init__()
        bn = nn.BatchNorm2d(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self._adopt(bn, activation)

    @classmethod
    def from_modules(cls, bn: nn.BatchNorm2d, activation: str = "relu") -> "BatchNormAct2d":
        """The fused layer around an existing batch norm, which becomes its child: tensors are shared."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._adopt(bn, activation)
        layer.training = bn.training
        return layer

    def _adopt(self, bn: nn.BatchNorm2d, activation: str) -> None:
        name = type(self).__name__
        check_activation(name, activation)
        check_bn_kind(name, bn)
        self.bn = bn
        self.activation = activation

    def forward(self, input: Tensor, residual: Optional[Tensor] = None) -> Tensor:
        if not torch.jit.is_scripting():
            if must_be_called(self.bn, nn.BatchNorm2d):
                output = self.bn(input)
                return activate(output if residual is None else output + residual, self.activation)
        return batch_norm_act(
            input,
            residual,
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
        check_scriptable(self, bn=nn.BatchNorm2d)
        return self

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


class LocalResponseNorm(nn.LocalResponseNorm):
    """torch.nn.LocalResponseNorm on the fused operator: (N, C, H, W) to the same shape.

    Every value is divided by (k + alpha / size · sum of squares of `size` neighbouring channels) ** beta.

    Source: Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural
    networks", as in the course notes; torch.nn.LocalResponseNorm.
    """

    def forward(self, input: Tensor) -> Tensor:
        return local_response_norm(input, self.size, self.alpha, self.beta, self.k)
