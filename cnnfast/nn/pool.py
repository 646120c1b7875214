"""Pooling modules."""

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from cnnfast.ops.pool2d import avg_pool2d, global_avg_pool2d, max_pool2d

torch.fx.wrap("avg_pool2d")
torch.fx.wrap("global_avg_pool2d")
torch.fx.wrap("max_pool2d")


class MaxPool2d(nn.MaxPool2d):
    """torch.nn.MaxPool2d on the fused operator; (N, C, H, W) to (N, C, Ho, Wo).

    Raises ValueError for return_indices=True, which the operator does not give.

    Source: course notes; torch.nn.MaxPool2d.
    """

    def __init__(
        self, kernel_size, stride=None, padding=0, dilation=1, return_indices=False, ceil_mode=False
    ):
        if return_indices:
            raise ValueError(
                "MaxPool2d: the fused operator gives no indices; write "
                f"torch.nn.MaxPool2d({kernel_size}, return_indices=True)"
            )
        stride = kernel_size if stride is None else stride
        super().__init__(
            _pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation), ceil_mode=ceil_mode
        )

    def forward(self, input: Tensor) -> Tensor:
        return max_pool2d(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class AvgPool2d(nn.AvgPool2d):
    """torch.nn.AvgPool2d on the fused operator; (N, C, H, W) to (N, C, Ho, Wo).

    Source: course notes; torch.nn.AvgPool2d.
    """

    def __init__(
        self,
        kernel_size,
        stride=None,
        padding=0,
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
    ):
        stride = kernel_size if stride is None else stride
        super().__init__(
            _pair(kernel_size), _pair(stride), _pair(padding), ceil_mode, count_include_pad, divisor_override
        )

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class GlobalAvgPool2d(nn.Module):
    """Mean over the image: (N, C, H, W) to (N, C, 1, 1).

    Source: Lin et al. 2013, arXiv:1312.4400, as in the course notes.
    """

    def forward(self, input: Tensor) -> Tensor:
        return global_avg_pool2d(input)
