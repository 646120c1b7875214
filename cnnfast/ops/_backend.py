"""Which implementation serves a call. The environment variable CNNFAST_BACKEND chooses for CUDA tensors:

aten    the library's composite of ATen operators (cuDNN convolutions)
cuda    the CUDA kernels of the library
triton  Triton kernels: those that were compiled into the library, else those of cnnfast.triton, compiled here
auto    the fastest, as measured at the first call with a shape

The rule stands in csrc/gpu/choice.h, where scripts and C++ have it; this file adds what only Python can
launch. A backend that cannot serve a call is an error where it is forced, and says why. Operators that have
no such backend at all choose among those that they have.
"""

import functools
import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode, is_traceable_wrapper_subclass

from cnnfast import _ext, reference

BACKENDS = ("auto", "aten", "cuda", "triton")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TRITON_ACTIVATIONS = ("none", "relu", "sigmoid")
REPEATS = 5

Call = Callable[[], Tensor]
Timer = Callable[[Call], float]


def _requested() -> str:
    name = os.environ.get("CNNFAST_BACKEND", "") or "auto"
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
    if _REQUESTED in ("aten", "cuda") or type(input) is not torch.Tensor or not input.is_cuda:
        return None
    if _is_watched() or _library_has_triton():
        return None  # the library chooses, and knows what this file does not
    return _chosen_conv2d


def _is_watched() -> bool:
    """Whether somebody records or transforms operators: a kernel that Python launches is none to them."""
    return (
        torch.jit.is_tracing()
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or is_in_torch_dispatch_mode()
    )


def event_milliseconds(call: Call) -> float:
    """The least of a few runs between two events of the current stream, after one that warms up."""
    call()
    times = []
    for _ in range(REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return min(times)


def run_fastest(
    op: str,
    key: str,
    options: dict[str, Call],
    unavailable: dict[str, str],
    *,
    may_measure: bool,
    timer: Timer = event_milliseconds,
) -> Tensor:
    """Runs the option that the library's rule chooses, timing all of them where it must.

    options: in order of preference, by backend. unavailable: why some of them cannot serve. An option that
    fails while it is timed is left out with a warning, unless it is forced. Raises RuntimeError where a
    forced backend cannot serve.
    """
    unavailable = dict(unavailable)
    while True:
        names = list(options)
        reasons = [unavailable.get(name, "") for name in names]
        name = torch.ops.cnnfast.choose_backend(op, key, names, reasons, may_measure)
        if name:
            return options[name]()
        times: dict[str, float] = {}
        for name in names:
            if name in unavailable:
                continue
            try:
                times[name] = timer(options[name])
            except Exception as error:  # whatever a compiler or a driver raises
                unavailable[name] = f"{name} failed: {type(error).__name__}: {error}"
                warnings.warn(
                    f"cnnfast: {op} goes on without {unavailable[name]}", RuntimeWarning, stacklevel=2
                )
        torch.ops.cnnfast.add_backend_times(key, list(times), list(times.values()))


@functools.cache  # of hundreds of names, for every convolution
def _library_has_triton() -> bool:
    return _ext.AVAILABLE and bool(torch.ops.cnnfast.triton_kernels())


def _chosen_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
) -> Tensor:
    arguments = (input, weight, bias, scale, residual, stride, padding, dilation, groups, activation)
    reason = _why_not_triton(arguments)

    def library() -> Tensor:
        serve = torch.ops.cnnfast.conv2d if _ext.AVAILABLE else reference.conv2d
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return serve(input, weight, bias, scale, residual, **options, activation=activation)

    def triton() -> Tensor:
        from cnnfast.triton.conv2d import conv2d  # here, for `import cnnfast` to stay light

        return conv2d(*arguments)

    if _REQUESTED == "triton":
        if reason:
            raise RuntimeError(f"cnnfast::conv2d: CNNFAST_BACKEND=triton cannot serve this call: {reason}")
        return triton()
    if reason or not _ext.AVAILABLE:
        return library()
    measurable = not torch.cuda.is_current_stream_capturing()
    may_measure = measurable and not torch.are_deterministic_algorithms_enabled()
    options = {"aten": library, "triton": triton}
    return run_fastest("conv2d", _key(arguments), options, {}, may_measure=may_measure)


def _why_not_triton(arguments: tuple) -> str:
    input, *_, activation = arguments
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    if input.dtype not in TRITON_DTYPES:
        return f"it has no kernel for {input.dtype}"
    if activation not in TRITON_ACTIVATIONS:
        return f"it has no kernel with the activation {activation}"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return (
            "a gradient is recorded, and kernels that Python launches have none: build the library with "
            "CNNFAST_TRITON_AOT=1, or call under torch.no_grad()"
        )
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    return ""


def _key(arguments: tuple) -> str:
    """What the choice depends on; told apart from the library's own keys by its first word."""
    parts = ["python conv2d", torch.cuda.get_device_name(arguments[0].device)]
    for value in arguments:
        if isinstance(value, Tensor):
            aligned = "" if value.data_ptr() % 16 == 0 else "u"
            parts.append(f"{value.dtype}{tuple(value.shape)}{tuple(value.stride())}{aligned}")
        else:
            parts.append(str(value))
    parts.append(str(torch.backends.cudnn.conv.fp32_precision))
    return " ".join(parts)
