"""The CUDA kernel behind torch.ops.cnnfast.batch_norm_act on a GPU, against float64 on the CPU."""

import pytest
import torch
from bn_act_cases import ACTIVATIONS, DTYPES, SHAPES, assert_close, make_case

from cnnfast import _ext

DEVICE = "cuda"


def reason_to_skip() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    if not _ext.AVAILABLE:
        return f"the operator library is not loaded: {_ext.REASON}"
    return "" if _ext.build_info()["cuda"] else "cnnfast was built without CUDA"


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())]


def run(case) -> torch.Tensor:
    tensors = (case.input, case.mean, case.var, case.weight, case.bias, case.residual)
    on_device = [None if tensor is None else tensor.to(DEVICE) for tensor in tensors]
    return torch.ops.cnnfast.batch_norm_act(*on_device, eps=case.eps, activation=case.activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", (*SHAPES, (8, 250, 33, 31)), ids=str)
def test_bn_act_on_gpu(shape, dtype, activation):
    case = make_case(shape, dtype, activation=activation)
    output = run(case)
    assert output.dtype == dtype and output.is_contiguous(memory_format=torch.channels_last)
    assert_close(case, output.cpu())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bn_act_without_optional_arguments_on_gpu(dtype):
    case = make_case((2, 33, 5, 7), dtype, optional=False)
    assert_close(case, run(case).cpu())


def test_bn_act_of_an_unaligned_slice_on_gpu():
    case = make_case((1, 8, 6, 5), torch.float16)
    memory = torch.empty(8 * 30 + 3, dtype=torch.float16, device=DEVICE)
    image = memory[3:].view(1, 6, 5, 8).permute(0, 3, 1, 2)
    image.copy_(case.input)
    tensors = [t.to(DEVICE) for t in (case.mean, case.var, case.weight, case.bias, case.residual)]
    assert_close(case, torch.ops.cnnfast.batch_norm_act(image, *tensors, eps=case.eps).cpu())


def test_bn_act_of_float64_on_gpu():
    case = make_case((2, 5, 3, 3), torch.float64)
    assert_close(case, run(case).cpu())


def test_bn_act_of_no_images_on_gpu():
    assert run(make_case((0, 5, 3, 3), torch.float32)).shape == (0, 5, 3, 3)


def test_bn_act_in_a_cuda_graph():
    case = make_case((4, 64, 9, 9), torch.bfloat16)
    tensors = [t.to(DEVICE) for t in (case.input, case.mean, case.var, case.weight, case.bias, case.residual)]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = torch.ops.cnnfast.batch_norm_act(*tensors, eps=case.eps)
    output.fill_(torch.nan)
    graph.replay()
    assert_close(case, output.cpu())
