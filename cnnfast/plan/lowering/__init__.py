"""From a traced network to the steps of a plan."""

from cnnfast.plan.lowering import (
    activations,
    arithmetic,
    blocks,
    channels,
    gates,
    layers,
    lines,
    norms,
    padding,
    pools,
    resample,
    shapes,
    transposed,
)
from cnnfast.plan.lowering.context import Lowering, Refusal

__all__ = [
    "Lowering",
    "Refusal",
    "activations",
    "arithmetic",
    "blocks",
    "channels",
    "gates",
    "layers",
    "lines",
    "norms",
    "padding",
    "pools",
    "resample",
    "shapes",
    "transposed",
]
