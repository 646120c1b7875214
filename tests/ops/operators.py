"""One typical call of every operator, for the properties that all of them share."""

from dataclasses import dataclass

import torch

from cnnfast import ops, reference


@dataclass(frozen=True)
class Operator:
    """Shapes of the tensor arguments, the other arguments, and the places whose first size is the batch."""

    name: str
    shapes: tuple
    options: dict
    batched: tuple = (0,)

    def tensors(self, batch=3, dtype=torch.float32, device="cpu", requires_grad=False):
        tensors = []
        for place, shape in enumerate(self.shapes):
            shape = (batch, *shape[1:]) if place in self.batched else shape
            tensors.append(torch.randn(shape, dtype=torch.float32).to(device=device, dtype=dtype))
        return [t.requires_grad_(requires_grad) for t in tensors]

    def run(self, *tensors):
        return first(getattr(ops, self.name)(*tensors, **self.options))

    def run_reference(self, *tensors):
        return first(getattr(reference, self.name)(*tensors, **self.options))

    @property
    def overload(self):
        return getattr(torch.ops.cnnfast, self.name).default

    def __str__(self):
        return self.name


def first(result):
    """The differentiable output of an operator that may have several."""
    return result[0] if isinstance(result, tuple) else result


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
        "bn_act_conv2d",
        ((3, 5, 9, 8), (7, 5, 3, 3), (7,), (5,), (5,)),
        {"padding": (1, 1), "pre_activation": "relu"},
    ),
    Operator("local_response_norm", ((3, 7, 9, 8),), {"size": 5, "alpha": 0.5}),
    Operator("global_avg_pool2d", ((3, 5, 9, 8),), {}),
    Operator("linear", ((3, 19), (13, 19), (13,)), {"activation": "relu"}),
    Operator("max_pool2d", ((3, 5, 9, 8),), {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}),
    Operator("avg_pool2d", ((3, 5, 9, 8),), {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}),
]
