"""What the tests on a real GPU share: when they can run, copies on the device, comparison."""

import pytest
import torch

from cnnfast import _ext

DEVICE = "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Convolutions of float32 may run in TF32; these tests switch it off.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def reason_to_skip() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    if not _ext.AVAILABLE:
        return f"the operator library is not loaded: {_ext.REASON}"
    return "" if _ext.build_info()["cuda"] else "cnnfast was built without CUDA"


needs_device = [pytest.mark.gpu, pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())]


def on_device(tensor, dtype=None):
    if tensor is None:
        return None
    copy = tensor.detach().to(DEVICE, dtype)
    return copy.requires_grad_(tensor.requires_grad)


def assert_near(actual, truth, dtype):
    """Relative to the largest true value; NaN and Inf at the same places."""
    assert actual.shape == truth.shape
    actual, truth = actual.detach().cpu().double(), truth.detach().double()
    odd = ~truth.isfinite()
    torch.testing.assert_close(actual[odd], truth[odd], equal_nan=True)
    error = (actual - truth)[~odd].abs()
    if error.numel():
        # Gradients through two values of a channel are differences of terms near one.
        limit = TOLERANCE[dtype] * truth[~odd].abs().max().clamp(min=1e-2)
        assert error.max() <= limit, f"error {error.max():.3g} above {limit:.3g}"
