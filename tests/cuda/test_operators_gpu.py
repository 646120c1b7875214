"""Every operator on a GPU against float64 by the reference on the CPU, forward and backward."""

import pytest
import torch
from device import DEVICE, DTYPES, assert_near, needs_device, on_device
from ops.operators import OPERATORS

from cnnfast import ops, reference

pytestmark = needs_device
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

ACTIVATIONS = (
    "none",
    "relu",
    "sigmoid",
    "relu6",
    "leaky_relu(0.2)",
    "hardsigmoid",
    "silu",
    "tanh",
    "elu",
    "gelu",
)
SHAPES = ((1, 1, 2, 1), (2, 3, 5, 7), (3, 16, 3, 5), (2, 33, 9, 8), (8, 250, 33, 31), (2, 64, 56, 56))


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def gradients(output, cotangent, tensors):
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    return torch.autograd.grad(output, wanted, cotangent)


@dtypes
@every_operator
def test_operator_and_gradients(operator, dtype):
    tensors = [t.to(dtype) for t in operator.tensors()]
    doubles = [t.double().requires_grad_() for t in tensors]
    on_gpu = [t.to(DEVICE).requires_grad_() for t in tensors]
    truth, output = operator.run_reference(*doubles), operator.run(*on_gpu)
    assert output.dtype == dtype
    assert_near(output, truth, dtype)
    cotangent = torch.randn(truth.shape).to(dtype)
    expected = gradients(truth, cotangent.double(), doubles)
    for actual, gradient in zip(gradients(output, cotangent.to(DEVICE), on_gpu), expected, strict=True):
        assert_near(actual, gradient, dtype)


@every_operator
def test_operator_of_no_images(operator):
    tensors = [t.to(DEVICE).requires_grad_() for t in operator.tensors(batch=0)]
    output = operator.run(*tensors)
    assert output.shape[0] == 0
    for gradient in gradients(output, torch.ones_like(output), tensors):
        assert gradient.isfinite().all()


@every_operator
def test_operator_repeats_its_bits(operator):
    tensors = [t.to(DEVICE) for t in operator.tensors(dtype=torch.float16)]
    first = operator.run(*tensors)
    assert all(torch.equal(operator.run(*tensors), first) for _ in range(3))


@every_operator
def test_operator_in_a_cuda_graph(operator):
    tensors = [t.to(DEVICE) for t in operator.tensors(dtype=torch.float16)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # what is measured or compiled on first use is so before the capture
        expected = operator.run(*tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = operator.run(*tensors)
    output.fill_(torch.nan)
    graph.replay()
    torch.testing.assert_close(output, expected)


@every_operator
def test_operator_in_a_stream_of_its_own(operator):
    tensors = [t.to(DEVICE) for t in operator.tensors()]
    expected = operator.run(*tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = operator.run(*tensors)
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(output, expected)


# ---- batch norm


@pytest.mark.parametrize("activation", ACTIVATIONS)
@dtypes
def test_batch_norm_of_every_activation(dtype, activation):
    for shape in SHAPES:
        x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
        weight, bias = torch.randn(shape[1]), torch.randn(shape[1])
        leaves = [x, weight, bias, residual]
        doubles = [t.double().requires_grad_() for t in leaves]
        gpu = [t.to(DEVICE).requires_grad_() for t in leaves]
        truth = reference.batch_norm2d(*doubles[:3], None, None, doubles[3], True, activation=activation)
        before = reference.batch_norm2d(*doubles[:3], None, None, doubles[3], True)
        output = ops.batch_norm2d(*gpu[:3], None, None, gpu[3], True, activation=activation)
        assert output.is_contiguous(memory_format=torch.channels_last)
        assert_near(output, truth, dtype)
        cotangent = away_from_kinks(torch.randn(shape), before, activation).to(dtype)
        expected = gradients(truth, cotangent.double(), doubles)
        for actual, gradient in zip(gradients(output, cotangent.to(DEVICE), gpu), expected, strict=True):
            assert_near(actual, gradient, dtype)


def away_from_kinks(cotangent, before, activation):
    """No gradient where rounding decides on which side of a kink a value lies."""
    for kink in {"relu6": (0.0, 6.0), "hardsigmoid": (-3.0, 3.0)}.get(activation, (0.0,)):
        cotangent = cotangent.where((before - kink).abs() > 0.05, 0.0)
    return cotangent


@dtypes
def test_batch_norm_of_a_slice_of_channels(dtype):
    big = torch.randn(2, 40, 9, 8).to(dtype).contiguous(memory_format=torch.channels_last)
    for first, count in ((8, 16), (3, 33)):
        part = big.to(DEVICE)[:, first : first + count]
        output = ops.batch_norm2d(part, training=True, activation="relu")
        truth = reference.batch_norm2d(
            big[:, first : first + count].double(), training=True, activation="relu"
        )
        assert_near(output, truth, dtype)


def test_batch_norm_statistics_do_not_cancel():
    x = torch.randn(8, 16, 20, 20) + 1e4
    _, mean, var = torch.ops.cnnfast.batch_norm2d(x.to(DEVICE))
    wide = x.double()
    torch.testing.assert_close(var.cpu().double(), wide.var((0, 2, 3), correction=0), rtol=1e-5, atol=0)
    torch.testing.assert_close(mean.cpu().double(), wide.mean((0, 2, 3)), rtol=1e-6, atol=0)


@dtypes
def test_relu_keeps_nan_and_bits_say_where_the_gradient_passes(dtype):
    x = torch.randn(2, 9, 6, 5).to(dtype)
    x[0, 3, 2, 2] = torch.nan
    output, mean, var, positive = torch.ops.cnnfast.batch_norm2d_relu(x.to(DEVICE))
    assert output[:, 3].isnan().all() and not output[:, :3].isnan().any()
    bits = (positive.cpu().unsqueeze(1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[: x.numel()]
    expected = ~(output.cpu() <= 0).permute(0, 2, 3, 1).flatten()
    assert torch.equal(bits.bool(), expected)


@pytest.mark.parametrize("residual", (False, True))
def test_training_keeps_no_output(residual):
    """One bit per value is what is saved of ReLU beside the normalisation's own input."""
    shape = (4, 64, 32, 32)
    tensors = [torch.randn(shape, device=DEVICE, requires_grad=True) for _ in range(1 + residual)]
    saved = []

    def pack(tensor):
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops.batch_norm2d(
            tensors[0], residual=tensors[1] if residual else None, training=True, activation="relu"
        )
    values = tensors[0].numel()
    assert values // 8 in saved and sum(saved) <= 4 * values + values // 8 + 4 * 4 * 64


# ---- pooling, local response normalisation


@dtypes
@pytest.mark.parametrize("layout", ("channels_last", "nchw", "slice"))
@pytest.mark.parametrize("kind", ("max", "avg"))
def test_pooling_in_every_layout(kind, layout, dtype):
    x = torch.randn(2, 24, 13, 11).to(dtype)
    gpu = x.to(DEVICE)
    if layout != "nchw":
        gpu = gpu.contiguous(memory_format=torch.channels_last)
    if layout == "slice":
        gpu, x = gpu[:, 8:21], x[:, 8:21]
    gpu, wide = gpu.detach().requires_grad_(), x.double().requires_grad_()
    arguments = ((3, 2), (2, 1), (1, 1))
    output = getattr(ops, f"{kind}_pool2d")(gpu, *arguments, ceil_mode=True)
    truth = getattr(reference, f"{kind}_pool2d")(wide, *arguments, ceil_mode=True)
    assert_near(output, truth, dtype)
    cotangent = torch.randn(truth.shape).to(dtype)
    (actual,) = torch.autograd.grad(output, gpu, cotangent.to(DEVICE))
    (expected,) = torch.autograd.grad(truth, wide, cotangent.double())
    assert_near(actual, expected, dtype)


@dtypes
@pytest.mark.parametrize("size", (1, 4, 5, 17, 200))
def test_local_response_norm_of_every_size(size, dtype):
    x = (2 * torch.randn(2, 96, 7, 5)).to(dtype)
    gpu, wide = x.to(DEVICE).requires_grad_(), x.double().requires_grad_()
    output = ops.local_response_norm(gpu, size, alpha=0.5)
    truth = reference.local_response_norm(wide, size, alpha=0.5)
    assert_near(output, truth, dtype)
    cotangent = torch.randn(truth.shape).to(dtype)
    (actual,) = torch.autograd.grad(output, gpu, cotangent.to(DEVICE))
    assert_near(actual, torch.autograd.grad(truth, wide, cotangent.double())[0], dtype)


# ---- blocks


def operators_run(body):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        body()
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("name", ("inception", "dense_block"))
def test_blocks_do_not_concatenate(name):
    operator = next(operator for operator in OPERATORS if operator.name == name)
    tensors = [t.to(DEVICE).requires_grad_() for t in operator.tensors(dtype=torch.float16)]
    ran = operators_run(lambda: operator.run(*tensors).sum().backward())
    assert "aten::cat" not in ran


def test_inception_of_few_and_of_many_images():
    """Branches in streams of their own, and one after another."""
    operator = next(operator for operator in OPERATORS if operator.name == "inception")
    for batch in (1, 300):
        tensors = operator.tensors(batch=batch)
        truth = operator.run_reference(*(t.double() for t in tensors))
        for _ in range(5):
            assert_near(operator.run(*(t.to(DEVICE) for t in tensors)), truth, torch.float32)


def test_other_types_run_by_aten():
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    output = ops.batch_norm2d(x.to(DEVICE), training=True, activation="relu")
    torch.testing.assert_close(output.cpu(), reference.batch_norm2d(x, training=True, activation="relu"))


def test_mixed_devices_are_an_error():
    x, weight = torch.randn(2, 5, 7, 6), torch.randn(3, 5, 1, 1, device=DEVICE)
    with pytest.raises(RuntimeError, match="input is on cpu, but weight is on cuda"):
        ops.conv2d(x, weight)


def test_device_guard():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device alone")
    x = torch.randn(2, 8, 7, 6)
    output = ops.batch_norm2d(on_device(x).to("cuda:1"), training=True)
    assert output.device == torch.device("cuda:1")
    assert_near(output, reference.batch_norm2d(x.double(), training=True), torch.float32)
