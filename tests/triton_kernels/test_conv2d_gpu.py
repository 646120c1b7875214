"""The Triton convolution on a GPU, against float64 on the CPU."""

import pytest
import torch
import torch.nn.functional as F
from conv2d_cases import (
    ACTIVATIONS,
    DTYPES,
    ROUNDING,
    SHAPES,
    Shape,
    after_prologue,
    assert_close,
    assert_within,
    gradients_and_bounds,
    make_gradient_operands,
    make_operands,
    make_prologue,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = "cuda"
# Relative error of a product: float32 sums, or TF32's 10-bit mantissas, each rounded once.
PRODUCT_ERROR = {False: 2e-6, True: 2.0**-9}
WIDE = Shape((2, 64, 15, 13), (128, 64, 3, 3), {"padding": 1})
ODD = Shape((2, 17, 5, 4), (33, 17, 3, 3), {"padding": 1})


@pytest.fixture
def conv2d():
    """Imported late: the file is collected where Triton is not installed, too."""
    from cnnfast.triton.conv2d import conv2d

    return conv2d


@pytest.mark.parametrize("allow_tf32", (False, True), ids=("ieee", "tf32"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", (*SHAPES, WIDE), ids=str)
def test_conv2d_shapes_on_gpu(conv2d, shape, dtype, allow_tf32):
    operands = make_operands(shape, dtype, DEVICE)
    output = conv2d(**operands, **shape.options, activation="relu", allow_tf32=allow_tf32)
    error = PRODUCT_ERROR[allow_tf32 and dtype == torch.float32]
    assert_close(output, operands, shape.options, "relu", product_error=error)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conv2d_activations_on_gpu(conv2d, dtype, activation):
    operands = make_operands(ODD, dtype, DEVICE)
    operands["input"][0, 3, 2, 2] = torch.nan
    output = conv2d(**operands, padding=1, activation=activation, allow_tf32=False)
    assert output[0, :, 1:4, 1:4].isnan().all() and output.isnan().sum() == 9 * 33
    operands["input"][0, 3, 2, 2] = 0.0
    output = conv2d(**operands, padding=1, activation=activation, allow_tf32=False)
    assert_close(output, operands, ODD.options, activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", (WIDE, ODD), ids=("wide", "odd"))
def test_conv2d_every_tile_on_gpu(conv2d, shape, dtype):
    from cnnfast.triton.conv2d_arguments import geometry
    from cnnfast.triton.tiles import Access, candidates, forward_product, machine_of

    operands = make_operands(shape, dtype, DEVICE)
    sizes = geometry("test", shape.input, shape.weight, 1, shape.options["padding"], 1, 1)
    access = Access(shape is WIDE, "tf32")
    machine = machine_of(operands["input"].device)
    for tile in candidates(forward_product(sizes), dtype.itemsize, access, machine):
        output = conv2d(**operands, **shape.options, tile=tile, allow_tf32=True)
        error = PRODUCT_ERROR[dtype == torch.float32]
        assert_close(output, operands, shape.options, product_error=error)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", (0, 3, 16))
def test_conv2d_writes_its_slice_on_gpu(conv2d, offset, dtype):
    operands = make_operands(WIDE, dtype, DEVICE)
    buffer = torch.full((2, 160, 15, 13), torch.nan, dtype=dtype, device=DEVICE)
    buffer = buffer.to(memory_format=torch.channels_last)
    result = conv2d(**operands, padding=1, out=buffer, out_channel_offset=offset, allow_tf32=False)
    assert_close(buffer[:, offset : offset + 128], operands, WIDE.options)
    assert buffer.isnan().sum() == buffer.numel() - result.numel()


def test_conv2d_in_a_cuda_graph(conv2d):
    operands = make_operands(WIDE, torch.float16, DEVICE)
    conv2d(**operands, padding=1)  # compiles before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = conv2d(**operands, padding=1)
    output.fill_(torch.nan)
    graph.replay()
    assert_close(output, operands, WIDE.options)


STRIDED = Shape((2, 64, 15, 13), (128, 64, 3, 3), {"padding": 1, "stride": 2})


@pytest.mark.parametrize("allow_tf32", (False, True), ids=("ieee", "tf32"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", (*SHAPES, WIDE, STRIDED), ids=str)
def test_gradients_on_gpu(shape, dtype, allow_tf32):
    from cnnfast.triton.conv2d_input_grad import conv2d_input_grad
    from cnnfast.triton.conv2d_weight_grad import conv2d_weight_grad

    t = make_gradient_operands(shape, dtype)
    gpu = {name: tensor.to(DEVICE) for name, tensor in t.items()}
    error = PRODUCT_ERROR[allow_tf32 and dtype == torch.float32]
    (dx, dw), bounds = gradients_and_bounds(t["x"], t["w"], t["dy"], shape.options, error)
    options = shape.options | {"allow_tf32": allow_tf32}
    assert_within(conv2d_input_grad(gpu["dy"], gpu["w"], shape.input, **options), dx, bounds[0])
    output = conv2d_weight_grad(gpu["dy"], gpu["x"], shape.weight[2:], **options)
    assert_within(output, dw, bounds[1])
    again = conv2d_weight_grad(gpu["dy"], gpu["x"], shape.weight[2:], **options)
    assert torch.equal(output, again), "sums in another order"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", (WIDE, ODD), ids=("wide", "odd"))
def test_prologue_and_statistics_on_gpu(shape, dtype):
    from cnnfast.triton.conv2d import conv2d_statistics

    operands = make_operands(shape, dtype, DEVICE)
    prologue = make_prologue(shape.input[1], torch.float32, DEVICE)
    output, mean, var = conv2d_statistics(
        operands["input"], operands["weight"], padding=1, **prologue, pre_activation="relu", allow_tf32=False
    )
    a, terms = after_prologue(operands["input"], prologue, relu=True)
    w = operands["weight"].cpu().double()
    bound = F.conv2d(terms, w.abs(), padding=1) * (2e-6 + ROUNDING[dtype])
    assert_within(output, F.conv2d(a, w, padding=1), bound)
    values = output.cpu().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.cpu().double(), values.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var.cpu().double(), values.var(1, correction=0), rtol=1e-4, atol=0)
