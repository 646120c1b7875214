"""Which implementation serves a call. The environment variable CNNFAST_BACKEND chooses for CUDA tensors:

aten    the library's composite of ATen operators (cuDNN convolutions)
triton  the kernels of cnnfast.triton, where one exists for the operator
auto    the faster of the two as far as measured; nothing is measured yet, so aten
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from cnnfast import reference

BACKENDS = ("auto", "aten", "triton")


def _requested() -> str:
    name = os.environ.get("CNNFAST_BACKEND", "auto")
    if name not in BACKENDS:
        raise ValueError(f"CNNFAST_BACKEND must be one of {', '.join(BACKENDS)}, not {name!r}")
    return name


_REQUESTED = _requested()


def needs_reference(input: Tensor, weight: Tensor) -> bool:
    """True for tensors made of tensors (DTensor, quantised …), which know ATen's operators but not ours."""
    if type(input) is torch.Tensor and type(weight) in (torch.Tensor, Parameter):
        return False
    return is_traceable_wrapper_subclass(input) or is_traceable_wrapper_subclass(weight)


def other_conv2d(input: Tensor, weight: Tensor) -> Callable[..., Tensor] | None:
    """The convolution to call in place of the library's, or None."""
    if needs_reference(input, weight):
        return reference.conv2d
    if _REQUESTED == "triton" and input.is_cuda:
        from cnnfast.triton.conv2d import conv2d as triton_conv2d  # here, for `import cnnfast` to stay light

        return triton_conv2d
    return None
