"""Errors against float64, and the first network of several that keeps within a budget."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cnnfast.fuse.check import relative_error
from cnnfast.fuse.shells import evaluating, own_copy, unfused
from cnnfast.plan.record import copied, tensors_in, with_tensors


def check_budget(error_budget: object) -> None:
    """ValueError for all but None and positive finite numbers."""
    if error_budget is None:
        return
    number = isinstance(error_budget, (int, float)) and not isinstance(error_budget, bool)
    if not (number and math.isfinite(error_budget) and error_budget > 0):
        raise ValueError(
            f"freeze: error_budget is a positive finite number such as 1e-5, not {error_budget!r}"
        )


def in_double(model: nn.Module, inputs: tuple) -> list[Tensor]:
    """The output tensors of a float64 copy in evaluation mode; ValueError where there are none."""
    doubled = with_tensors(lambda x: x.double() if x.is_floating_point() else x, inputs)
    try:
        wanted = tensors_in(evaluating(own_copy(unfused(model)).double())(*doubled))
    except Exception as error:  # whatever the network's own code raises
        raise ValueError(
            f"freeze: error_budget compares with the network in float64, where it fails ({error}): leave "
            "error_budget out, or let the network take float64"
        ) from error
    single = [
        tensor.dtype for tensor in wanted if tensor.is_floating_point() and tensor.dtype != torch.float64
    ]
    if single:
        raise ValueError(
            f"freeze: error_budget compares with the network in float64, but there it gives {single[0]}: "
            "leave error_budget out, or let the network compute in its input's dtype"
        )
    return wanted


def first_within(
    budget: float, wanted: list[Tensor], inputs: tuple, networks: Iterable[tuple[str, nn.Module]]
) -> tuple[nn.Module, str]:
    """The first network whose error on `inputs` is within the budget, and a line for its report.

    networks: with a word for what computes them; taken one by one. The error is the largest difference from
    `wanted` (float64) over its largest value. Raises ValueError with the errors where none keeps the budget.
    """
    beyond: list[str] = []
    for computed_by, network in networks:
        got = tensors_in(network(*map(copied, inputs)))
        error = max(relative_error(a, b) for a, b in zip(got, wanted, strict=True))
        if error <= budget:
            note = f"error budget {budget:.1e}: kept by {computed_by}, error {error:.1e}"
            return network, "; ".join([f"{note} of the largest value in float64", *beyond])
        beyond.append(f"{computed_by}: {error:.1e}")
    raise ValueError(
        f"freeze: error_budget={budget:g} is out of reach on example_inputs ({'; '.join(beyond)} of the "
        "largest value in float64): allow more than the smallest of these, or leave error_budget out"
    )
