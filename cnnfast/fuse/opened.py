"""Functions that take no proxies, opened while a forward is traced: scripted ones, autograd's own."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType

import torch
from torch._functorch import utils as functorch
from torch.autograd import Function
from torch.utils._pytree import tree_leaves

from cnnfast.fuse.proxies import is_proxy


@contextmanager
def functions_opened(without_gradients: bool) -> Iterator[None]:
    """Proxies run through the Python that a scripted function was made of.

    without_gradients: through the forward of a torch.autograd.Function as well, whose own gradient a graph
        cannot hold.
    """
    with ExitStack() as stack:
        stack.enter_context(_exchanged(torch.jit.ScriptFunction, "__call__", _call_python))
        if without_gradients:
            stack.enter_context(_exchanged(Function, "apply", classmethod(_run_forward)))
            # a bound `apply` that a module holds is torch's own: before torch 2.14 it unwraps its arguments
            if _UNWRAP is not None:
                stack.enter_context(_exchanged(functorch, "unwrap_dead_wrappers", _unwrap))
        yield


@contextmanager
def _exchanged(owner: type | ModuleType, name: str, other: object) -> Iterator[None]:
    own = vars(owner)[name]
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, own)


_CALL = torch.jit.ScriptFunction.__call__
_APPLY = vars(Function)["apply"]
_UNWRAP = getattr(functorch, "unwrap_dead_wrappers", None)


def _call_python(self, *args: object, **kwargs: object) -> object:
    original = getattr(self, "_torchdynamo_inline", None)
    if original is None or not _has_proxies(args, kwargs):
        return _CALL(self, *args, **kwargs)
    return original(*args, **kwargs)


def _run_forward(cls: type, *args: object, **kwargs: object) -> object:
    if not _has_proxies(args, kwargs):
        return _APPLY.__get__(None, cls)(*args, **kwargs)
    if cls.setup_context is not Function.setup_context:
        return cls.forward(*args, **kwargs)
    return cls.forward(_Context(len(args)), *args, **kwargs)


def _unwrap(args: tuple) -> tuple:
    return tuple(arg if is_proxy(arg) else _UNWRAP((arg,))[0] for arg in args)


class _Context:
    """Takes what a forward keeps for its gradient, which nobody asks for."""

    def __init__(self, arguments: int):
        self.needs_input_grad = (False,) * arguments

    def _ignore(self, *values: object) -> None:
        pass

    save_for_backward = save_for_forward = mark_dirty = _ignore
    mark_non_differentiable = set_materialize_grads = _ignore


def _has_proxies(args: tuple, kwargs: dict) -> bool:
    return any(map(is_proxy, tree_leaves((args, kwargs))))
