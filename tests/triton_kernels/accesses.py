"""Every address that a kernel touches in the interpreter, held against the tensors that it was given."""

import numpy as np
import pytest
from torch import Tensor

from cnnfast.triton.nhwc import pixel_stride


def watch_accesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, a kernel that reads or writes outside its arguments fails, whatever it does with what it
    read. Of a channel slice, what lies between its pixels is outside."""
    from triton.runtime import interpreter

    tensors: list[Tensor] = []

    def check(what: str, pointers, mask) -> None:
        addresses = pointers.data[mask.data.astype(bool)].astype(np.int64)
        inside = np.zeros(addresses.shape, dtype=bool)
        for tensor in tensors:
            inside |= _belongs(addresses, tensor)
        assert inside.all(), f"{what} outside of every argument: {int((~inside).sum())} of {inside.size}"

    run = interpreter.GridExecutor.__call__
    load = interpreter.InterpreterBuilder.create_masked_load
    store = interpreter.InterpreterBuilder.create_masked_store

    def watched_run(self, *arguments, **constants):
        tensors[:] = [argument for argument in arguments if isinstance(argument, Tensor)]
        return run(self, *arguments, **constants)

    def watched_load(self, pointers, mask, *rest):
        check("reads", pointers, mask)
        return load(self, pointers, mask, *rest)

    def watched_store(self, pointers, value, mask, *rest):
        check("writes", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", watched_run)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", watched_load)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_store", watched_store)


def _belongs(addresses: np.ndarray, tensor: Tensor) -> np.ndarray:
    offsets, beside = np.divmod(addresses - tensor.data_ptr(), tensor.element_size())
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    inside = (beside == 0) & (offsets >= 0) & (offsets <= last)
    stride = pixel_stride(tensor) if tensor.dim() == 4 else None
    if stride:
        inside &= offsets % stride < tensor.shape[1]
    return inside
