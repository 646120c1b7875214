"""The networks of the course notes, built from cnnfast.nn."""

from cnnfast.models.alexnet import alexnet, alexnet_paper
from cnnfast.models.checkpoint import load_plain_state_dict
from cnnfast.models.densenet import densenet
from cnnfast.models.googlenet import googlenet
from cnnfast.models.inception_net import InceptionNet, inception_net
from cnnfast.models.lenet import lenet
from cnnfast.models.nin import nin, nin_single_1x1
from cnnfast.models.registry import get_model, list_models, register_model
from cnnfast.models.residual_net import ResidualNet, residual_net
from cnnfast.models.resnet import resnet18, resnet18_preact
from cnnfast.models.vgg import vgg, vgg11, vgg11_small

__all__ = [
    "InceptionNet",
    "ResidualNet",
    "alexnet",
    "alexnet_paper",
    "densenet",
    "get_model",
    "googlenet",
    "inception_net",
    "lenet",
    "list_models",
    "load_plain_state_dict",
    "nin",
    "nin_single_1x1",
    "register_model",
    "residual_net",
    "resnet18",
    "resnet18_preact",
    "vgg",
    "vgg11",
    "vgg11_small",
]
