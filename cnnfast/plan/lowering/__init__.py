"""From a traced network to the steps of a plan."""

from cnnfast.plan.lowering import blocks, layers, norms, pools, shapes
from cnnfast.plan.lowering.context import Lowering, Refusal

__all__ = ["Lowering", "Refusal", "blocks", "layers", "norms", "pools", "shapes"]
