"""The fused operators as typed functions: the only place where a backend is chosen.

With the extension they are `torch.ops.cnnfast.*` (kernels for CPU and CUDA; an ATen composite on other
devices and dtypes); without it they are `cnnfast.reference`. All of them differentiate once, and compile with
torch.jit.script and torch.compile.
"""

from cnnfast.ops.batch_norm2d import batch_norm2d
from cnnfast.ops.bn_act_conv2d import bn_act_conv2d
from cnnfast.ops.conv2d import conv2d
from cnnfast.ops.conv2d_batch_norm import conv2d_batch_norm
from cnnfast.ops.conv2d_bn_act import conv2d_bn_act
from cnnfast.ops.dense_block import dense_block
from cnnfast.ops.group_norm2d import group_norm2d, instance_norm2d
from cnnfast.ops.inception import inception
from cnnfast.ops.linear import linear
from cnnfast.ops.local_response_norm import local_response_norm
from cnnfast.ops.pool2d import avg_pool2d, global_avg_pool2d, max_pool2d

__all__ = [
    "avg_pool2d",
    "batch_norm2d",
    "bn_act_conv2d",
    "conv2d",
    "conv2d_batch_norm",
    "conv2d_bn_act",
    "dense_block",
    "global_avg_pool2d",
    "group_norm2d",
    "inception",
    "instance_norm2d",
    "linear",
    "local_response_norm",
    "max_pool2d",
]
