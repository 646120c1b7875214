"""Eager PyTorch truth for every operator: the fallback without the extension, and the oracle of the tests.

Every function has the signature of its namesake in `cnnfast.ops`, uses torch.nn.functional alone,
differentiates, and compiles with torch.jit.script.
"""

from cnnfast.reference.conv2d import conv2d
from cnnfast.reference.conv2d_batch_norm import conv2d_batch_norm
from cnnfast.reference.conv2d_bn_act import conv2d_bn_act
from cnnfast.reference.dense_block import dense_block
from cnnfast.reference.inception import inception
from cnnfast.reference.linear import linear
from cnnfast.reference.pool2d import avg_pool2d, max_pool2d

__all__ = [
    "avg_pool2d",
    "conv2d",
    "conv2d_batch_norm",
    "conv2d_bn_act",
    "dense_block",
    "inception",
    "linear",
    "max_pool2d",
]
