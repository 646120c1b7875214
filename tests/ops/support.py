"""What the operator tests share: layouts, poisoned memory, comparison with float64."""

import contextlib

import pytest
import torch

from cnnfast import _ext

needs_extension = pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")

ACTIVATIONS = ("none", "relu", "sigmoid")


def _between_nans(x, *dims):
    """The same values as a slice of a larger tensor, with NaN all around in the given dimensions."""
    shape = [size + 3 if dim in dims else size for dim, size in enumerate(x.shape)]
    window = tuple(slice(1, 1 + size) if dim in dims else slice(None) for dim, size in enumerate(x.shape))
    big = x.new_full(shape, float("nan"))
    big[window] = x
    return big[window]


def _channel_slice(x):
    """A slice of the channels of a channels_last tensor: what a branch of a concatenation looks like."""
    return _between_nans(x.permute(0, 2, 3, 1), 3).permute(0, 3, 1, 2)


def _ambiguous(x):
    """Strides that say nothing where a size is 1: PyTorch may set any."""
    strides = [7 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True)]
    return x.as_strided(x.shape, strides)


# Each gives a tensor of the same values in memory laid out in its own way.
LAYOUTS = {
    "nchw": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: _between_nans(x, 0, 1, 2, 3),
    "channel_slice": _channel_slice,
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch_inside": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "every_second": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "ambiguous": _ambiguous,
}


def in_layout(x, layout):
    """x in a layout of LAYOUTS; checked, as a wrong helper would test nothing."""
    y = LAYOUTS[layout](x.detach())
    torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)
    return y


def poison(*shapes):
    """Leave freed memory of these sizes full of NaN, for an output that is not written to show."""
    for tensor in [torch.full(shape, float("nan")) for shape in shapes]:
        del tensor


def assert_near(actual, truth, relative=1e-5):
    """Largest error against float64, relative to the largest true value; NaN and Inf at the same places."""
    assert actual.shape == truth.shape
    truth = truth.double()
    actual = actual.detach().double()
    odd = ~truth.isfinite()
    torch.testing.assert_close(actual[odd], truth[odd], equal_nan=True)
    error = (actual - truth)[~odd].abs()
    assert not error.isnan().any(), "NaN where there is none"
    if error.numel():
        limit = relative * truth[~odd].abs().max().clamp(min=1e-3)
        assert error.max() <= limit, f"error {error.max():.3g} above {limit:.3g}"


def doubles(tensors):
    """Float64 copies, None and requires_grad kept."""
    return [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


def gradients(outputs, cotangent, tensors):
    """The gradients of every tensor that requires one, None for the others."""
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, cotangent.to(outputs.dtype)))
    return [next(found) if t is not None and t.requires_grad else None for t in tensors]


class Allocations:
    """Sizes in bytes of what was allocated, and the names of the operators that ran."""

    def __init__(self):
        self.sizes, self.operators = [], []


@contextlib.contextmanager
def allocations():
    """Record what torch's allocator on the CPU gives out. Filled in when the block ends."""
    record = Allocations()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        yield record
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            record.sizes.append(event.nbytes())
        else:
            record.operators.append(event.name())
    record.sizes = [size for size in record.sizes if size > 0]  # the others were freed


def on_threads(*numbers):
    """Each of them after torch.set_num_threads; as before when they are through."""
    before = torch.get_num_threads()
    try:
        for number in numbers:
            torch.set_num_threads(number)
            yield number
    finally:
        torch.set_num_threads(before)
