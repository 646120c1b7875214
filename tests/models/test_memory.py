"""Memory of training steps, by the count of torch's allocator."""

import copy

import pytest
import torch
import torch.nn.functional as F

import cnnfast
from cnnfast import _ext
from cnnfast.benchmarking.allocations import peak_allocated
from cnnfast.benchmarking.plain import get_plain

pytestmark = pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")


def _peak(net, images, dtype):
    labels = torch.zeros(len(images), dtype=torch.long)

    def step():
        net.zero_grad(set_to_none=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(net(images).float(), labels)
        loss.backward()

    step()  # gradients are there from now on
    return peak_allocated(step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_densenet_takes_less_than_half_of_eager_memory(dtype):
    """A dense block keeps its output and the gradient of it, in the memory that the gradient came in or,
    where that is bfloat16, in its place; what is normalised is computed again, a part of the batch at a time.
    Without instructions for bfloat16 a transition's products are float32."""
    torch.manual_seed(0)
    plain = get_plain("densenet").train()
    fused = cnnfast.fuse(copy.deepcopy(plain)).train()
    images = torch.rand(8, 1, 64, 64)
    pairs = _ext.active_isa() in ("avx512_bf16", "amx")
    limit = 0.47 if dtype == torch.float32 else 0.48 if pairs else 0.7
    assert _peak(fused, images, dtype) <= limit * _peak(plain, images, dtype)
