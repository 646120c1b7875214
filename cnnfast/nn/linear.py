"""Fully connected layer and activation as one module."""

import torch
from torch import Tensor, nn

from cnnfast.nn._checks import check_activation
from cnnfast.ops.linear import linear

torch.fx.wrap("linear")


class LinearAct(nn.Linear):
    """act(input @ weight.T + bias): torch.nn.Linear with an activation, "none", "relu" or "sigmoid".

    Input (..., in_features), output (..., out_features). Parameters `weight` (out, in) and `bias` (out).

    Raises ValueError for an unknown activation.

    Source: course notes; torch.nn.Linear.
    """

    def __init__(self, in_features, out_features, bias=True, activation="relu", device=None, dtype=None):
        check_activation(type(self).__name__, activation)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.activation = activation

    @classmethod
    def from_modules(cls, linear: nn.Linear, activation: str = "relu") -> "LinearAct":
        """The fused layer with the Parameters of an existing torch.nn.Linear (shared)."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"{cls.__name__}: linear must be a torch.nn.Linear, not {type(linear).__name__}")
        check_activation(cls.__name__, activation)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.activation = activation
        layer.training = linear.training
        return layer

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"


class LinearReLU(LinearAct):
    """relu(input @ weight.T + bias); see LinearAct."""

    def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
        super().__init__(in_features, out_features, bias, "relu", device, dtype)
