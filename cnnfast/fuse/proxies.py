"""What a forward works on while it is traced: proxies that answer as the values they stand for would."""

import builtins
import math
import operator
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn

from cnnfast.fuse.number_nodes import is_number
from cnnfast.fuse.pieces import number_of_pieces
from cnnfast.fuse.signature import NotTraceable

DECIDES = "its forward decides by the values or sizes of tensors"
_RANKS = ("dim", "ndimension")
_OF_PROXIES = ("tracer", "node", "_node", "root", "attr")
# Code that asks whether a value is a proxy, and code that asks whether a tensor is a parameter.
_INSIDE = (
    os.path.dirname(fx.__file__) + os.sep,
    os.path.dirname(os.path.dirname(__file__)) + os.sep,
    nn.parameter.__file__,
)


class Converted(Exception):
    """int() or float() was asked of a size in a module that has them as Python's own yet (see `Names`)."""


class Value(fx.Proxy):
    """A proxy that writes down `x += y` on tensors as what it is; fx alone would record `x = x + y`.

    What else is done to a tensor's attributes, such as `x.data = y`, has no place in a graph.
    """

    def __getattr__(self, name):
        rank = self.tracer.rank(self.node) if name == "ndim" else None
        return Attribute(self, name) if rank is None else rank

    def __setattr__(self, name, value):
        _refuse_to_set(self, name)
        super().__setattr__(name, value)

    def __len__(self):
        number = number_of_pieces(self.node)
        return self.tracer.length(self.node) if number is None else number


class Attribute(fx.proxy.Attribute):
    """The same for an attribute of a proxy."""

    def __call__(self, *args, **kwargs):
        rank = self.tracer.rank(self.root.node) if self.attr in _RANKS and not args else None
        return super().__call__(*args, **kwargs) if rank is None else rank

    def __setattr__(self, name, value):
        _refuse_to_set(self, name)
        super().__setattr__(name, value)

    def __len__(self):
        return self.tracer.length(self.node)


def is_proxy(value: object) -> bool:
    return type(value) in (Value, Attribute)


def _refuse_to_set(proxy: fx.Proxy, name: str) -> None:
    if name not in _OF_PROXIES:
        raise NotTraceable(f"its forward sets an attribute of a tensor ('{name}')")


def _in_place(name: str) -> Callable:
    def method(self, other):
        target = getattr(operator, name if not is_number(self.node) else name[1:])
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


def _index(self):
    return self.tracer.constant(self.node)


def _convert(self):
    """Python takes nothing but an int or a float from __int__ and __float__: a proxy comes by name."""
    try:
        return self.tracer.constant(self.node)
    except NotTraceable:
        names = _names_of_caller()
        if is_number(self.node) and self.tracer.names.can_replace(names):
            self.tracer.names.replace(names)
            raise Converted(DECIDES) from None
        raise


def _names_of_caller() -> dict:
    """Of the module that asks for a conversion."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame.f_globals


def _to_float(self):
    return float(_convert(self))


def _rounded(function: Callable) -> Callable:
    def method(self):
        return self.tracer.create_proxy("call_function", function, (self,), {})

    return method


for _class in (Value, Attribute):
    for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow"):
        setattr(_class, f"__{_name}__", _in_place(_name))
    _class.__index__ = _index
    _class.__int__, _class.__float__ = _convert, _to_float
    _class.__ceil__, _class.__floor__ = _rounded(math.ceil), _rounded(math.floor)


class Names:
    """Modules whose int, float, max and min take sizes while their forwards are traced.

    Only those in which a forward converted a size: everywhere else the names are Python's own.
    """

    def __init__(self):
        self._modules: list[dict] = []

    def can_replace(self, names: dict) -> bool:
        own = str(names.get("__name__", "")).partition(".")[0] in ("torch", "cnnfast", "builtins")
        return not own and all(names is not other for other in self._modules)

    def replace(self, names: dict) -> None:
        """From the next trace on."""
        self._modules.append(names)

    @contextmanager
    def replaced(self) -> Iterator[None]:
        put = [(names, name) for names in self._modules for name in _BY_NAME if name not in names]
        for names, name in put:
            names[name] = _BY_NAME[name]
        try:
            yield
        finally:
            for names, name in put:
                names.pop(name, None)


def _recorded(function: Callable) -> Callable:
    """The function itself, but for proxies of numbers."""

    def call(*args, **kwargs):
        proxy = next(filter(is_proxy, args), None)
        if proxy is None or not is_number(proxy.node):
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    call.stands_for = function
    return call


_BY_NAME = {function.__name__: _recorded(function) for function in (int, float, max, min)}


@contextmanager
def proxies_as_values() -> Iterator[None]:
    """isinstance(x, Tensor) is asked about the value that a proxy stands for; torch.as_tensor takes one."""
    original, as_tensor = builtins.isinstance, torch.as_tensor

    def isinstance(value, kinds):
        if type(kinds) in (tuple, type(_kinds)):
            kinds = _kinds(kinds)
        if not is_proxy(value) or original(value, kinds):
            return original(value, kinds)
        if sys._getframe(1).f_code.co_filename.startswith(_INSIDE):
            return False
        return issubclass(value.tracer.class_of(value.node), kinds)

    def tensor_of(data, dtype=None, device=None):
        if not is_proxy(data):
            return as_tensor(data, dtype=dtype, device=device)
        kinds = {"dtype": dtype, "device": device}
        wanted = {name: kind for name, kind in kinds.items() if kind is not None}
        return data.to(**wanted) if wanted else data

    builtins.isinstance, torch.as_tensor = isinstance, tensor_of
    try:
        yield
    finally:
        builtins.isinstance, torch.as_tensor = original, as_tensor


def _kinds(kinds: object) -> object:
    """Classes, with those in the place of what stands for them in a module of `Names`."""
    if type(kinds) is tuple:
        return tuple(map(_kinds, kinds))
    return getattr(kinds, "stands_for", kinds) if type(kinds) is type(_kinds) else kinds
