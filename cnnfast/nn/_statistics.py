"""What torch.nn.BatchNorm2d does around the normalisation itself: which averages move, and how far."""

from typing import Optional

import torch
from torch import Tensor


def step_of(momentum: Optional[float]) -> float:
    """How far an operator moves the averages that `averages` gives it."""
    return 1.0 if momentum is None else momentum


def averages(
    running: Optional[Tensor], training: bool, track_running_stats: bool, momentum: Optional[float]
) -> Optional[Tensor]:
    """The running average as an operator gets it: None where training keeps none, a copy if cumulative.

    The copy takes the batch's own statistics (`step_of` is 1), and `settle` moves the true average towards
    them: so its step is a tensor, and neither compilation nor a GPU has to wait for a number.
    """
    if not training or running is None:
        return running
    if not track_running_stats:
        return None
    return running.clone() if momentum is None else running


def settle(
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    mean: Optional[Tensor],
    var: Optional[Tensor],
    batches_tracked: Optional[Tensor],
    training: bool,
    track_running_stats: bool,
    momentum: Optional[float],
) -> None:
    """Count the batch and move cumulative averages; mean and var: what `averages` gave, after the operator.

    To be called behind the operator, so that an error leaves everything as it was.
    """
    if not training or not track_running_stats or batches_tracked is None:
        return
    batches_tracked.add_(1)
    if momentum is None and running_mean is not None and running_var is not None:
        step = torch.reciprocal(batches_tracked.to(running_mean.dtype))
        if mean is not None and var is not None:
            running_mean.lerp_(mean, step)
            running_var.lerp_(var, step)
