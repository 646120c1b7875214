"""The watch over addresses sees what it should: interpreted kernels that read and write a little too far.

Needs TRITON_INTERPRET=1 before the first import: test_interpreter.py runs it in its own process.
"""

import pytest
import torch
import triton
import triton.language as tl

assert not isinstance(triton.jit(lambda: None), triton.runtime.JITFunction), "run with TRITON_INTERPRET=1"


@triton.jit
def copy_kernel(x_ptr, y_ptr, first, count, COLUMNS: tl.constexpr):
    i = first + tl.arange(0, COLUMNS)
    inside = i < first + count
    tl.store(y_ptr + tl.arange(0, COLUMNS), tl.load(x_ptr + i, mask=inside, other=0.0), mask=inside)


@pytest.mark.parametrize(
    ("first", "count", "size", "message"),
    [(0, 6, 6, None), (0, 7, 8, "reads"), (-1, 3, 8, "reads"), (0, 6, 5, "writes")],
)
def test_accesses_outside_are_seen(first, count, size, message):
    x, y = torch.arange(20.0)[4:10], torch.zeros(20)[:size]
    if message is None:
        copy_kernel[(1,)](x, y, first, count, COLUMNS=8)
        assert torch.equal(x, y)
        return
    with pytest.raises(Exception, match=f"{message} outside of every argument"):
        copy_kernel[(1,)](x, y, first, count, COLUMNS=8)


def test_between_pixels_of_a_slice_is_outside():
    buffer = torch.zeros(1, 8, 2, 2).to(memory_format=torch.channels_last)
    copy_kernel[(1,)](buffer[:, 2:5], torch.zeros(8), 8, 3, COLUMNS=8)
    with pytest.raises(Exception, match="reads outside of every argument"):
        copy_kernel[(1,)](buffer[:, 2:5], torch.zeros(8), 8, 4, COLUMNS=8)
