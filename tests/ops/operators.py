"""One typical call of every operator, for the properties that all of them share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cnnfast import ops, reference
from cnnfast.ops.inception import conv_stage, encode_branches, pool_stage


def as_they_are(*tensors):
    return tensors


@dataclass(frozen=True)
class Operator:
    """Shapes of the tensor arguments, the other arguments, and the places whose first size is the batch.

    `pack` makes the positional arguments of the function of the tensors, and `pack_overload` those of the
    operator behind it where they differ: some take lists.
    """

    name: str
    shapes: tuple
    options: dict
    batched: tuple = (0,)
    pack: Callable = as_they_are
    pack_overload: Callable | None = None

    def tensors(self, batch=3, dtype=torch.float32, device="cpu", requires_grad=False):
        tensors = []
        for place, shape in enumerate(self.shapes):
            shape = (batch, *shape[1:]) if place in self.batched else shape
            tensors.append(torch.randn(shape, dtype=torch.float32).to(device=device, dtype=dtype))
        return [t.requires_grad_(requires_grad) for t in tensors]

    def run(self, *tensors):
        return first(getattr(ops, self.name)(*self.pack(*tensors), **self.options))

    def run_reference(self, *tensors):
        return first(getattr(reference, self.name)(*self.pack(*tensors), **self.options))

    def overload_arguments(self, *tensors):
        return (self.pack_overload or self.pack)(*tensors)

    @property
    def overload(self):
        return getattr(torch.ops.cnnfast, self.name).default

    def __str__(self):
        return self.name


def first(result):
    """The differentiable output of an operator that may have several."""
    return result[0] if isinstance(result, tuple) else result


def inception_arguments(input, reduce, bias, wide, pooled):
    """Every kind of branch: through, 1×1, 1×1→3×3, pooling→1×1, pooling alone."""
    branches = [
        [],
        [conv_stage(1, activation="relu")],
        [conv_stage(1, activation="relu"), conv_stage(3, padding=1, activation="sigmoid")],
        [pool_stage("max", 3, 1, 1), conv_stage(1)],
        [pool_stage("avg", 3, 1, 1)],
    ]
    return [input, [reduce, reduce, wide, pooled], [None, bias, None, bias], encode_branches(branches)]


def dense_block_lists(input, first, second, bias, bn_weight, bn_bias):
    return [input, [first, second], [None, bias], [bn_weight, None], [None, bn_bias]]


def dense_block_arguments(*tensors):
    """Without running averages: the batch's statistics."""
    return [*dense_block_lists(*tensors), [None, None], [None, None]]


def dense_block_overload_arguments(*tensors):
    return [*dense_block_lists(*tensors), [], []]


OPERATORS = [
    Operator(
        "conv2d",
        ((3, 6, 9, 8), (10, 3, 3, 3), (10,), (10,), (3, 10, 5, 4)),
        {"stride": (2, 2), "padding": (1, 1), "groups": 2, "activation": "relu"},
        (0, 4),
    ),
    Operator(
        "conv2d_batch_norm",
        ((3, 5, 9, 8), (7, 5, 3, 3), (7,), (7,), (7,), (3, 7, 9, 8)),
        {"padding": (1, 1), "activation": "relu"},
        (0, 5),
    ),
    Operator("batch_norm2d", ((3, 5, 9, 8), (5,), (5,)), {"activation": "relu"}),
    Operator(
        "group_norm2d", ((3, 6, 9, 8), (6,), (6,)), {"activation": "silu"}, pack=lambda x, w, b: (x, 2, w, b)
    ),
    Operator(
        "bn_act_conv2d",
        ((3, 5, 9, 8), (7, 5, 3, 3), (7,), (5,), (5,)),
        {"padding": (1, 1), "pre_activation": "relu"},
    ),
    Operator("local_response_norm", ((3, 7, 9, 8),), {"size": 5, "alpha": 0.5}),
    Operator("global_avg_pool2d", ((3, 5, 9, 8),), {}),
    Operator(
        "inception",
        ((3, 5, 9, 8), (7, 5, 1, 1), (7,), (6, 7, 3, 3), (7, 5, 1, 1)),
        {},
        pack=inception_arguments,
    ),
    Operator(
        "dense_block",
        ((3, 5, 9, 8), (7, 5, 3, 3), (6, 12, 1, 3), (6,), (5,), (12,)),
        {"activation": "relu"},
        pack=dense_block_arguments,
        pack_overload=dense_block_overload_arguments,
    ),
    Operator("linear", ((3, 19), (13, 19), (13,)), {"activation": "relu"}),
    Operator("max_pool2d", ((3, 5, 9, 8),), {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}),
    Operator("avg_pool2d", ((3, 5, 9, 8),), {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}),
]
