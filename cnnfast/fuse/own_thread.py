"""Tracing while other threads go on: what fx and cnnfast exchange meanwhile, the whole process calls."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from torch import fx, nn

# What one trace exchanges another must not take for the original.
ONE_AT_A_TIME = threading.RLock()

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def one_at_a_time(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Runs calls of different threads after each other.

    Whether a TorchDispatchMode (fake tensors, counted operations) is active torch keeps for the whole
    process: where two threads leave theirs in another order than they entered, it stays true, and
    torch.compile takes no function any more.
    """

    @wraps(function)
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        with ONE_AT_A_TIME:
            return function(*args, **kwargs)

    return call


class OwnThreadTracer(fx.Tracer):
    """fx.Tracer that records what its own thread calls.

    fx exchanges `__call__` and `__getattr__` of nn.Module: networks that other threads run meanwhile, or the
    traced one itself, would be taken for parts of it.
    """

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)
        self._thread = threading.get_ident()

    def is_elsewhere(self) -> bool:
        """Whether another thread asks."""
        return threading.get_ident() != self._thread

    def trace(self, *args: object, **kwargs: object) -> fx.Graph:
        with ONE_AT_A_TIME:
            return super().trace(*args, **kwargs)

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
        if self.is_elsewhere():
            return forward(*args, **kwargs)
        return super().call_module(module, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict) -> object:
        if self.is_elsewhere():
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
