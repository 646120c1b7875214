"""cnnfast: the convolutional networks of the course notes on fused kernels, for training and inference.

net = cnnfast.models.get_model("residual_net")   # fused modules, trains like any other network
fast = cnnfast.fuse(my_net)                       # the same network on fused layers, weights shared
frozen = cnnfast.freeze(my_net, example_inputs)   # a snapshot for inference: folded, packed, planned
cnnfast.export(frozen, "net.pt")                  # for another process, or for C++
"""

from cnnfast import basics, models, nn, ops
from cnnfast.export import export, library_path
from cnnfast.freeze import FrozenNet, freeze, load

# `cnnfast.fuse`, `.freeze`, `.export` and `.summary` are modules as well; these imports make the attributes
# functions. Inside the package write `from cnnfast.fuse import fuse`, never `cnnfast.fuse.fuse`.
from cnnfast.fuse import fuse
from cnnfast.limits import Limits, measure_limits
from cnnfast.summary import summary

__version__ = "0.1.0"

__all__ = [
    "FrozenNet",
    "Limits",
    "basics",
    "export",
    "freeze",
    "fuse",
    "library_path",
    "load",
    "measure_limits",
    "models",
    "nn",
    "ops",
    "summary",
]
