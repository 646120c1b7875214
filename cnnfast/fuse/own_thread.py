"""Tracing while other threads go on: what fx and cnnfast exchange meanwhile, the whole process calls."""

import threading
from collections.abc import Callable

from torch import fx, nn

# What one trace exchanges another must not take for the original.
ONE_AT_A_TIME = threading.RLock()


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
