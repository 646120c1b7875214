"""From a traced network to the steps of a plan."""

from cnnfast.plan.lowering import layers, shapes
from cnnfast.plan.lowering.context import Lowering, Refusal

__all__ = ["Lowering", "Refusal", "layers", "shapes"]
