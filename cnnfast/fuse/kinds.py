"""What a node of a traced graph is, and whether a layer is what its class says."""

import math
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from cnnfast.fuse.foreign import has_known_forward, is_frozen_norm, is_norm_act, pads_to_same
from cnnfast.fuse.functions import stand_in
from cnnfast.fuse.number_nodes import is_number, is_size
from cnnfast.fuse.shells import has_hooks
from cnnfast.fuse.tracing import torch_ancestor
from cnnfast.nn._holders import split_padding

_ACTIVATION_FUNCTIONS = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    torch.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    F.sigmoid: "sigmoid",
}
_ACTIVATION_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid"}
ACTIVATION_MODULES = {nn.ReLU: "relu", nn.Sigmoid: "sigmoid"}
# Those that a convolution, linear layer or batch norm can end with, but that no block or prologue has.
_MORE_FUNCTIONS = {
    F.relu6: "relu6",
    F.hardsigmoid: "hardsigmoid",
    F.hardswish: "hardswish",
    F.silu: "silu",
    F.mish: "mish",
    F.tanh: "tanh",
    torch.tanh: "tanh",
    torch.tanh_: "tanh",
}
_MORE_METHODS = {"tanh": "tanh", "tanh_": "tanh"}
_MORE_MODULES = {
    nn.ReLU6: "relu6",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Tanh: "tanh",
}
# Those with numbers, by the attributes of their module, which are the arguments of the function too.
_NUMBERED = {
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.ELU: ("elu", ("alpha",)),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
}
_NUMBERED_FUNCTIONS = {
    F.leaky_relu: ("leaky_relu", {"negative_slope": 0.01}),
    F.elu: ("elu", {"alpha": 1.0}),
    F.hardtanh: ("hardtanh", {"min_val": -1.0, "max_val": 1.0}),
}
_GELU = {"none": "gelu", "tanh": "gelu_tanh"}
PLAIN_ACTIVATIONS = ("none", "relu", "sigmoid")
_ADD_FUNCTIONS = (operator.add, operator.iadd, torch.add)
_ADD_METHODS = ("add", "add_")
_CONCAT_FUNCTIONS = (torch.cat, torch.concat, torch.concatenate)


def module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """The layer that a node calls; for a function that is written out a stand-in (see functions.py)."""
    return root.get_submodule(node.target) if node.op == "call_module" else stand_in(node)


def layer_name(node: fx.Node) -> str:
    """How reports name a node: by the module's path, or by the node's own name for a function."""
    return node.target if node.op == "call_module" else node.name


def activation_of(node: fx.Node, root: nn.Module) -> str | None:
    """ "relu" or "sigmoid" where the node is that and nothing else."""
    if node.op == "call_module":
        return ACTIVATION_MODULES.get(type(module_of(node, root)))
    if node.op == "call_method":
        return _ACTIVATION_METHODS.get(node.target)
    return _ACTIVATION_FUNCTIONS.get(node.target) if node.op == "call_function" else None


def ending_of(node: fx.Node, root: nn.Module) -> str | None:
    """What a convolution, linear layer or batch norm can end with, where the node is just that."""
    plain = activation_of(node, root)
    if plain is not None or node.op == "get_attr":
        return plain
    if node.op == "call_module":
        module = module_of(node, root)
        if type(module) is nn.GELU:
            return _GELU.get(module.approximate)
        if type(module) in _NUMBERED:
            name, attributes = _NUMBERED[type(module)]
            return _with_numbers(name, [getattr(module, attribute) for attribute in attributes])
        return _MORE_MODULES.get(type(module))
    if node.op == "call_method":
        return _MORE_METHODS.get(node.target)
    if node.target is F.gelu and len(node.args) == 1 and not node.kwargs.keys() - {"approximate"}:
        return _GELU.get(node.kwargs.get("approximate", "none"))
    if node.op != "call_function":
        return None
    if node.target in _NUMBERED_FUNCTIONS:
        name, defaults = _NUMBERED_FUNCTIONS[node.target]
        given = defaults | dict(zip((*defaults, "inplace"), node.args[1:], strict=False)) | node.kwargs
        return _with_numbers(name, [given[key] for key in defaults])
    return _MORE_FUNCTIONS.get(node.target)


def _with_numbers(name: str, numbers: list[object]) -> str | None:
    """ "leaky_relu(0.2)"; None where a number is computed in the forward."""
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        return None
    return f"{name}({', '.join(repr(float(number)) for number in numbers)})"


def numbers_of(module: nn.Module) -> tuple[str, ...]:
    """The attributes of an activation that are its numbers."""
    return _NUMBERED[type(module)][1] if type(module) in _NUMBERED else ()


def is_ending(module: nn.Module) -> bool:
    """Whether a layer is an activation that others can end with."""
    return type(module) in (*ACTIVATION_MODULES, *_MORE_MODULES, *_NUMBERED, nn.GELU)


def addends(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors of a plain sum a + b."""
    is_add = (node.op == "call_function" and node.target in _ADD_FUNCTIONS) or (
        node.op == "call_method" and node.target in _ADD_METHODS
    )
    if not is_add or len(node.args) != 2 or {k: v for k, v in node.kwargs.items() if (k, v) != ("alpha", 1)}:
        return None
    a, b = node.args
    tensors = all(isinstance(arg, fx.Node) and not is_number(arg) for arg in (a, b))
    return (a, b) if tensors else None


def concatenated(node: fx.Node) -> list[fx.Node] | None:
    """The tensors of a concatenation on dimension 1."""
    if node.op != "call_function" or node.target not in _CONCAT_FUNCTIONS or len(node.args) > 2:
        return None
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) == 2 else node.kwargs.get("dim")
    if dim != 1 or node.kwargs.keys() - {"tensors", "dim"} or not isinstance(tensors, (tuple, list)):
        return None
    return list(tensors)


def image_mean(node: fx.Node) -> tuple[list[int], bool] | None:
    """Dimensions and keepdim where a node is the mean over height and width, (2, 3) or (-2, -1)."""
    dim, keepdim = _mean_arguments(*node.args, **node.kwargs)
    if not isinstance(dim, (tuple, list)) or sorted(map(str, dim)) not in (["2", "3"], ["-1", "-2"]):
        return None
    return (list(dim), keepdim) if isinstance(keepdim, bool) else None


def _mean_arguments(input=None, dim=None, keepdim=False, **others) -> tuple[object, object]:
    return (None if others else dim), keepdim


def is_image_size(value: object, x: fx.Node) -> bool:
    """Whether a node is x.size()[2:] or x.shape[2:], the window of the notes' global average pooling."""
    if not isinstance(value, fx.Node) or value.target is not operator.getitem:
        return False
    size, index = value.args
    return is_size(size) and size.args[0] is x and index in (slice(2, None), slice(2, 4), slice(-2, None))


def writes_in_place(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node changes one of its arguments."""
    if node.op == "call_module":
        return bool(getattr(module_of(node, root), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place_operator = getattr(node.target, "__module__", "") == "_operator" and name in (
        "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "setitem",
    )  # fmt: skip
    named_so = name.endswith("_") and not name.endswith("__")
    return (
        in_place_operator
        or named_so
        or bool(node.kwargs.get("inplace"))
        or node.kwargs.get("out") is not None
    )


def is_written(value: fx.Node, root: nn.Module) -> bool:
    """Whether something writes in place into a value, or into what may be a view of it."""
    for user in value.users:
        if user.args[:1] != (value,) or user.op not in ("call_function", "call_method", "call_module"):
            continue
        if writes_in_place(user, root) or (user.op != "call_module" and is_written(user, root)):
            return True
    return False


def pads_first(conv: nn.Conv2d) -> bool:
    """Whether a convolution's padding is more than equal numbers of zeros on opposite sides."""
    return pads_to_same(conv) or bool(split_padding(conv)[0])


def why_not_plain(module: nn.Module) -> str | None:
    """Why a layer's forward cannot be taken for that of its torch.nn class; None where it can."""
    cls, ancestor = type(module), torch_ancestor(module)
    if has_hooks(module):
        return "it has hooks: remove them, or register them on the network around it"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if is_frozen_norm(module) or has_known_forward(module):
        return None
    if is_norm_act(module):
        return None if isinstance(module.drop, nn.Identity) else "it has a drop layer inside"
    for name in ("forward", "_conv_forward", "__call__", "_call_impl"):
        if getattr(cls, name, None) is not getattr(ancestor, name, None):
            return f"{cls.__name__} is a subclass of {ancestor.__name__} with its own {name}"
    return None


def why_not_live(module: nn.Module) -> str | None:
    """Why a layer's parameters cannot be read at every call in the place of calling it."""
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "it is parametrized: remove the parametrization (leaving its value) first"
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor) and not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not floating point"
    return why_not_plain(module)
