"""Eager PyTorch truth for every operator: the fallback without the extension, and the oracle of the tests.

Every function has the signature of its namesake in `cnnfast.ops`, uses torch.nn.functional alone,
differentiates, and compiles with torch.jit.script.
"""

from cnnfast.reference.batch_norm2d import batch_norm2d
from cnnfast.reference.bn_act_conv2d import bn_act_conv2d
from cnnfast.reference.conv2d import conv2d
from cnnfast.reference.conv2d_batch_norm import conv2d_batch_norm
from cnnfast.reference.conv2d_bn_act import conv2d_bn_act
from cnnfast.reference.dense_block import dense_block
from cnnfast.reference.group_norm2d import group_norm2d, instance_norm2d
from cnnfast.reference.inception import inception
from cnnfast.reference.linear import linear
from cnnfast.reference.local_response_norm import local_response_norm
from cnnfast.reference.pool2d import avg_pool2d, global_avg_pool2d, max_pool2d

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
