"""linear + activation against float64, forward and backward."""

import pytest
import torch

from cnnfast import ops, reference

from .support import ACTIVATIONS, assert_near, doubles, gradients, needs_extension, on_threads, poison

SHAPES = [
    (1, 1, 1),
    (1, 400, 120),
    (3, 5, 7),
    (16, 120, 84),
    (5, 84, 10),
    (2, 33, 65),
    (17, 64, 32),
    (64, 7, 1),
]


def check(input, weight, bias, activation="none"):
    tensors = [input, weight, bias]
    poison((*input.shape[:-1], weight.shape[0]))
    output = ops.linear(*tensors, activation)
    exact = doubles(tensors)
    truth = reference.linear(*exact, activation)
    assert_near(output, truth)
    if activation == "relu":
        assert torch.equal(output > 0, truth > 0)
    cotangent = torch.randn(truth.shape)
    for own, true in zip(
        gradients(output, cotangent, tensors), gradients(truth, cotangent, exact), strict=True
    ):
        assert (own is None) == (true is None)
        if own is not None:
            assert_near(own, true)


def weight_of(inputs, outputs):
    return (torch.randn(outputs, inputs) / inputs**0.5).requires_grad_()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(shape, activation):
    batch, inputs, outputs = shape
    bias = torch.randn(outputs, requires_grad=True)
    check(torch.randn(batch, inputs, requires_grad=True), weight_of(inputs, outputs), bias, activation)
    check(torch.randn(batch, inputs, requires_grad=True), weight_of(inputs, outputs), None, activation)


# So many weights are read as they lie, for so few rows; the last two are more rows.
MANY_WEIGHTS = [
    (1, 4096, 70),
    (3, 2049, 130),
    (8, 1024, 257),
    (9, 1500, 180),
    (16, 4096, 65),
    (31, 1100, 241),
    (32, 520, 515),
    (33, 520, 515),
    (300, 520, 515),
]


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("shape", MANY_WEIGHTS, ids=str)
def test_linear_of_many_weights(shape, activation):
    batch, inputs, outputs = shape
    bias = torch.randn(outputs, requires_grad=True)
    check(torch.randn(batch, inputs, requires_grad=True), weight_of(inputs, outputs), bias, activation)
    check(torch.randn(batch, inputs), weight_of(inputs, outputs), None, activation)
    turned = torch.randn(inputs, outputs).t().requires_grad_()
    check(torch.randn(batch, inputs, requires_grad=True), turned, None, activation)


@needs_extension
@pytest.mark.parametrize("shape", [shape for shape in MANY_WEIGHTS if shape[0] <= 32], ids=str)
def test_linear_of_many_weights_does_not_depend_on_threads(shape):
    batch, inputs, outputs = shape
    input, weight = torch.randn(batch, inputs, requires_grad=True), weight_of(inputs, outputs)
    cotangent, threads, found = torch.randn(batch, outputs), torch.get_num_threads(), []
    try:
        for team in (1, 2, 3):
            torch.set_num_threads(team)
            output = ops.linear(input, weight)
            found.append((output, *torch.autograd.grad(output, (input, weight), cotangent)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_nan_and_infinity_of_many_weights_stay_in_their_rows():
    input, weight = torch.randn(16, 1030, requires_grad=True), weight_of(1030, 300)
    with torch.no_grad():
        input[3, 1029], input[11, 7] = float("nan"), float("inf")
    output = ops.linear(input, weight)
    assert output[3].isnan().all() and output[11].isinf().all()
    others = [row for row in range(16) if row not in (3, 11)]
    assert output[others].isfinite().all()
    (gradient,) = torch.autograd.grad(output[others].sum(), weight)
    assert gradient[:, 7].isnan().all() and gradient[:, 1029].isnan().all()  # zero times either
    assert gradient[:, 8:1029].isfinite().all()


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 3)], ids=str)
def test_linear_leading_dimensions(leading):
    check(
        torch.randn(*leading, 6, requires_grad=True),
        weight_of(6, 5),
        torch.randn(5, requires_grad=True),
        "relu",
    )


LAYOUTS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "rows_apart": lambda x: torch.cat([x, torch.full_like(x, float("nan"))], 1)[:, : x.shape[1]],
    "every_second": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "offset": lambda x: torch.cat([torch.full_like(x[:1], float("nan")), x])[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_linear_layout(layout):
    input, weight = torch.randn(5, 19), weight_of(19, 13).detach()
    place = LAYOUTS[layout]
    check(place(input).requires_grad_(), weight.requires_grad_(), None)
    check(input, place(weight.detach()).requires_grad_(), None)


def test_linear_expanded_input():
    check(torch.randn(1, 12).expand(4, 12), weight_of(12, 5), torch.randn(1).expand(5), "sigmoid")


def test_linear_special_values_stay_in_their_row():
    for value in (float("nan"), float("inf")):
        input = torch.randn(6, 20)
        input[2, 7] = value
        weight, bias = weight_of(20, 9).detach(), torch.randn(9)
        for activation in ACTIVATIONS:
            truth = reference.linear(input.double(), weight.double(), bias.double(), activation)
            assert_near(ops.linear(input, weight, bias, activation), truth)


def test_linear_batch_of_zero():
    input, weight = torch.randn(0, 6, requires_grad=True), weight_of(6, 5)
    bias = torch.randn(5, requires_grad=True)
    output = ops.linear(input, weight, bias, "relu")
    assert output.shape == (0, 5)
    output.sum().backward()
    assert input.grad.shape == (0, 6)
    assert torch.equal(weight.grad, torch.zeros_like(weight)) and torch.equal(
        bias.grad, torch.zeros_like(bias)
    )


def test_linear_output_is_memory_of_its_own():
    input, weight = torch.randn(4, 4), torch.eye(4)
    output = ops.linear(input, weight)
    assert len({t.untyped_storage().data_ptr() for t in (input, weight, output)}) == 3
    assert output.is_contiguous()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_gradcheck(activation):
    tensors = [torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)]
    tensors = [t.double().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *args: ops.linear(*args, activation), tensors)


@needs_extension
def test_linear_second_derivative_is_an_error():
    input = torch.randn(2, 4, requires_grad=True)
    output = ops.linear(input, torch.randn(3, 4), activation="sigmoid")
    (first,) = torch.autograd.grad(output.sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="cnnfast::linear"):
        torch.autograd.grad(first.sum(), input)


# So many rows are pixels of images: values in bfloat16, and gradients, come from kernels of convolutions.
MANY_ROWS = [
    ((512,), 16, 24),
    ((130,), 40, 12),
    ((521,), 33, 7),
    ((3, 200), 40, 9),
    ((2, 17, 19), 12, 65),
    ((640,), 1, 1),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", MANY_ROWS, ids=str)
def test_linear_of_many_rows(shape, activation):
    leading, inputs, outputs = shape
    bias = torch.randn(outputs, requires_grad=True)
    check(torch.randn(*leading, inputs, requires_grad=True), weight_of(inputs, outputs), bias, activation)
    turned = torch.randn(inputs, outputs).t().requires_grad_()
    check(torch.randn(*leading, inputs, requires_grad=True), turned, None, activation)
    check(torch.randn(*leading, inputs), weight_of(inputs, outputs), bias, activation)


def check_bfloat16(input, weight, bias, activation, relative=3e-2):
    """Against float64 on the rounded values; a float32 weight may be rounded."""
    tensors = [input, weight, bias]
    output = ops.linear(*tensors, activation)
    exact = doubles(tensors)
    truth = reference.linear(*exact, activation)
    assert output.dtype == torch.bfloat16 and output.is_contiguous()
    assert_near(output, truth, 1e-2)
    cotangent = torch.randn(truth.shape).bfloat16()
    found, true = gradients(output, cotangent, tensors), gradients(truth, cotangent.double(), exact)
    for own, right, tensor in zip(found, true, tensors, strict=True):
        if own is not None:
            assert own.dtype == tensor.dtype
            assert_near(own, right, relative)


@needs_extension
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["none", "sigmoid"])
@pytest.mark.parametrize("shape", [*MANY_ROWS, ((100,), 40, 30), ((5,), 16, 8)], ids=str)
def test_linear_in_bfloat16(shape, activation, parameters):
    leading, inputs, outputs = shape
    input = torch.randn(*leading, inputs).bfloat16().requires_grad_()
    weight = weight_of(inputs, outputs).detach().to(parameters).requires_grad_()
    bias = torch.randn(outputs).to(parameters).requires_grad_()
    check_bfloat16(input, weight, bias, activation)
    check_bfloat16(input.detach(), weight, None, activation)
    check_bfloat16(input, weight.detach(), None, activation)


@needs_extension
@pytest.mark.parametrize("rows", [7, 100, 200, 600])
def test_linear_under_autocast_as_eager(rows):
    input, weight = torch.randn(rows, 48, requires_grad=True), weight_of(48, 20)
    bias, cotangent = torch.randn(20, requires_grad=True), torch.randn(rows, 20)
    with torch.autocast("cpu", torch.bfloat16):
        output, eager = ops.linear(input, weight, bias), torch.nn.functional.linear(input, weight, bias)
    assert output.dtype == eager.dtype == torch.bfloat16
    assert_near(output, eager, 1e-2)
    tensors = [input, weight, bias]
    for own, other in zip(
        gradients(output, cotangent, tensors), gradients(eager, cotangent, tensors), strict=True
    ):
        assert own.dtype == torch.float32
        assert_near(own, other, 2e-2)


@needs_extension
def test_linear_of_many_rows_does_not_depend_on_threads():
    input, weight = torch.randn(700, 40, requires_grad=True), weight_of(40, 50)
    cotangent, found = torch.randn(700, 50), []
    for _ in on_threads(1, 2, 3):
        for x in (input, input.bfloat16()):
            output = ops.linear(x, weight)
            found.append((output, *torch.autograd.grad(output, (x, weight), cotangent.to(x.dtype))))
    for i, other in enumerate(found[2:]):
        assert all(torch.equal(a, b) for a, b in zip(found[i % 2], other, strict=True))
