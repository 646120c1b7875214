"""The networks of the course notes, built from cnnfast.nn."""

from cnnfast.models.checkpoint import load_plain_state_dict
from cnnfast.models.lenet import lenet
from cnnfast.models.registry import get_model, list_models, register_model
from cnnfast.models.residual_net import ResidualNet, residual_net

__all__ = [
    "ResidualNet",
    "get_model",
    "lenet",
    "list_models",
    "load_plain_state_dict",
    "register_model",
    "residual_net",
]
