"""Properties that every operator has: registration, dtypes, modes, compilation, repeatability."""

import concurrent.futures

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from cnnfast import _ext, ops

from .operators import OPERATORS
from .support import assert_near, needs_extension, poison

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=str)


@needs_extension
@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "gradient"])
@every_operator
def test_operator_passes_opcheck(operator, requires_grad):
    tensors = operator.tensors(requires_grad=requires_grad)
    torch.library.opcheck(operator.overload, operator.overload_arguments(*tensors), operator.options)


def backward_calls():
    """(overload, arguments) of every backward operator."""
    cases = {operator.name: operator for operator in OPERATORS}
    input, weight, bias, scale, residual = cases["conv2d"].tensors()
    geometry = [[2, 2], [1, 1], [1, 1], 2]
    output = torch.relu(torch.randn(3, 10, 5, 4))
    grad = torch.randn(3, 10, 5, 4)
    yield "conv2d_backward", [grad, input, weight, scale, output, *geometry, "relu", [True] * 5]
    yield (
        "conv2d_backward",
        [grad, input, weight, None, output, *geometry, "none", [True, False, True, False, False]],
    )
    yield "conv2d_input_grad", [grad, input, weight, *geometry]
    yield "conv2d_weight_grad", [grad, input, weight, *geometry]
    input, weight, bias, bn_weight, bn_bias, residual = cases["conv2d_batch_norm"].tensors()
    output, conv_output, mean, var = torch.ops.cnnfast.conv2d_batch_norm(
        input, weight, bias, bn_weight, bn_bias, residual, padding=[1, 1], activation="relu"
    )
    grad = torch.randn_like(output)
    tensors = [grad, input, weight, bn_weight, conv_output, mean - bias, var, output]
    yield "conv2d_batch_norm_backward", [*tensors, [1, 1], [1, 1], [1, 1], 1, 1e-5, "relu", [True] * 6]
    yield from normalisation_backward_calls(cases)
    yield from block_backward_calls(cases)
    input, weight, bias = cases["linear"].tensors()
    yield "linear_backward", [torch.randn(3, 13), input, weight, torch.randn(3, 13), "relu", [True] * 3]
    (input,) = cases["max_pool2d"].tensors()
    grad = torch.randn(3, 5, 5, 4)
    window = [[3, 3], [2, 2], [1, 1]]
    yield "max_pool2d_backward", [grad, input, *window, [1, 1], False]
    yield "avg_pool2d_backward", [grad, input, *window, False, True, None]
    yield "global_avg_pool2d_backward", [torch.randn(3, 5, 1, 1), input]


def normalisation_backward_calls(cases):
    input, weight, _ = cases["batch_norm2d"].tensors()
    output = torch.relu(torch.randn_like(input))
    tensors = [torch.randn_like(input), input, torch.randn(5), torch.rand(5) + 0.1]
    for batch_statistics, mask in ((True, [True, False, False, True, True, True]), (False, [True] * 6)):
        for options in ([weight, output, 1e-5, "relu"], [None, output, 1e-3, "none"]):
            yield "batch_norm2d_backward", [*tensors, *options, batch_statistics, mask]
    input, weight, bias = cases["group_norm2d"].tensors()
    tensors = [torch.randn_like(input), input, torch.randn(3, 2), torch.rand(3, 2) + 0.1, 2]
    yield "group_norm2d_backward", [*tensors, weight, bias, 1e-5, "silu", [True] * 3]
    yield "group_norm2d_backward", [*tensors, None, None, 1e-3, "none", [True, False, False]]
    input, weight, _, bn_weight, bn_bias = cases["bn_act_conv2d"].tensors()
    grad, statistics = torch.randn(3, 7, 9, 8), [torch.randn(5), torch.rand(5) + 0.1]
    geometry = [[1, 1], [1, 1], [1, 1], 1, 1e-5, "relu"]
    for batch_statistics in (True, False):
        tensors = [grad, input, weight, bn_weight, bn_bias, *statistics]
        yield "bn_act_conv2d_backward", [*tensors, *geometry, batch_statistics, [True] * 6]
        some = [False, True, True, False, False, False]
        yield "bn_act_conv2d_backward", [*tensors, *geometry, batch_statistics, some]
    (input,) = cases["local_response_norm"].tensors()
    yield "local_response_norm_backward", [torch.randn_like(input), input, 5, 0.5, 0.75, 1.0]


def block_backward_calls(cases):
    """The mask of a block's backward: input, weights, biases, then bn_weights and bn_biases."""
    input, weights, biases, branches = cases["inception"].overload_arguments(*cases["inception"].tensors())
    outputs = torch.ops.cnnfast.inception(input, weights, biases, branches)
    grad = torch.randn_like(outputs[0])
    present = [True] * 5 + [bias is not None for bias in biases]
    for mask in (present, [False] * 3 + [True] + [False] * 5):
        yield "inception_backward", [grad, input, weights, outputs, branches, mask]
    case = cases["dense_block"]
    input, weights, biases, *norms, _, _ = case.overload_arguments(*case.tensors())
    lists = [weights, biases, *norms]
    mask = [True, *(tensor is not None for tensors in lists for tensor in tensors)]
    given = [[torch.rand(weight.size(1)) + 0.5 for weight in weights] for _ in range(2)]
    for statistics in ([[], []], given):
        output, mean, var = torch.ops.cnnfast.dense_block(input, weights, biases, *norms, *statistics)
        tensors = [torch.randn_like(output), output, weights, *norms, *statistics, mean, var]
        yield "dense_block_backward", [*tensors, 1e-5, "relu", mask]
        yield "dense_block_backward", [*tensors, 1e-5, "relu", [False, True] + [False] * 7]


@needs_extension
def test_backward_operators_pass_opcheck():
    for name, arguments in backward_calls():
        torch.library.opcheck(getattr(torch.ops.cnnfast, name).default, arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@every_operator
def test_operator_other_floating_types(operator, dtype):
    tensors = operator.tensors(dtype=dtype, requires_grad=True)
    output = operator.run(*tensors)
    output.sum().backward()
    truth = operator.run_reference(*(t.detach().double() for t in tensors))
    assert output.dtype == dtype
    assert_near(output, truth, 1e-12 if dtype == torch.float64 else 3e-2)
    assert all(t.grad.dtype == dtype for t in tensors)


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str
)
@every_operator
def test_operator_odd_types_are_right_or_an_error(operator, dtype):
    tensors = [t.abs().mul(3).to(dtype) for t in operator.tensors()]
    try:
        truth = operator.run_reference(*tensors)
    except (RuntimeError, NotImplementedError):
        with pytest.raises((RuntimeError, NotImplementedError)):
            operator.run(*tensors)
        return
    try:
        output = operator.run(*tensors)
    except (RuntimeError, NotImplementedError):
        return
    torch.testing.assert_close(output, truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_operator
def test_operator_under_autocast_has_the_types_of_eager(operator, dtype):
    """Convolutions and linear layers run in autocast's type, the others in float32 or what they are given."""
    tensors = operator.tensors(requires_grad=True)
    for place in operator.batched[1:]:  # a residual comes out of an earlier layer
        tensors[place] = tensors[place].detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        output, truth = operator.run(*tensors), operator.run_reference(*tensors)
    narrow = "conv" in operator.name or operator.name == "linear"
    assert output.dtype == truth.dtype == (dtype if narrow else torch.float32)
    assert_near(output, truth, 5e-2)
    output.float().sum().backward()
    assert all(tensor.grad.dtype == tensor.dtype for tensor in tensors)


@every_operator
def test_operator_under_inference_mode(operator):
    tensors = operator.tensors()
    expected = operator.run(*tensors)
    with torch.inference_mode():
        output = operator.run(*tensors)
        again = operator.run(*(t.clone() for t in tensors))  # inference tensors: without a version counter
    assert output.is_inference()
    assert torch.equal(output, expected) and torch.equal(again, expected)


@every_operator
def test_operator_does_not_depend_on_the_number_of_threads(operator):
    tensors = operator.tensors(batch=7, requires_grad=True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, before):
            torch.set_num_threads(threads)
            output = operator.run(*tensors)
            results.append((output, *torch.autograd.grad(output.square().sum(), tensors)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for own, other in zip(result, results[0], strict=True):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-4)


@every_operator
def test_operator_repeats_bitwise(operator):
    tensors = operator.tensors(batch=5, requires_grad=True)
    results = []
    for _ in range(3):
        output = operator.run(*tensors)
        poison(output.shape)
        results.append((output, *torch.autograd.grad(output.square().sum(), tensors)))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@every_operator
def test_operator_from_several_threads_at_once(operator):
    """Different shapes and weights in every call: shared caches and scratch memory must keep them apart."""
    jobs = [operator.tensors(batch=batch) for batch in (1, 2, 3, 4) * 6]
    expected = [operator.run(*tensors) for tensors in jobs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda tensors: operator.run(*tensors), jobs))
    assert all(map(torch.equal, results, expected))


@every_operator
def test_operator_shapes_of_meta_and_fake_tensors(operator):
    real = operator.run(*operator.tensors())
    meta = operator.run(*operator.tensors(device="meta"))
    with FakeTensorMode():
        fake = operator.run(*operator.tensors())
    for other in (meta, fake):
        assert (other.shape, other.dtype) == (real.shape, real.dtype)
        if _ext.AVAILABLE:
            assert other.stride() == real.stride()


@every_operator
def test_operator_in_a_compiled_function(operator):
    tensors = operator.tensors(requires_grad=True)
    compiled = torch.compile(operator.run, fullgraph=True, backend="aot_eager")
    output, expected = compiled(*tensors), operator.run(*tensors)
    torch.testing.assert_close(output, expected)
    for own, true in zip(
        torch.autograd.grad(output.square().sum(), tensors),
        torch.autograd.grad(expected.square().sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(own, true)


class Layer(torch.nn.Module):
    """An operator as a module: the batched tensors are inputs, the others parameters."""

    def __init__(self, operator):
        super().__init__()
        self.operator = operator
        kept = [t for place, t in enumerate(operator.tensors()) if place not in operator.batched]
        self.kept = torch.nn.ParameterList(kept)

    def forward(self, *inputs):
        inputs, kept = iter(inputs), iter(self.kept)
        places = range(len(self.operator.shapes))
        return self.operator.run(*(next(inputs if p in self.operator.batched else kept) for p in places))


@every_operator
def test_operator_exports_with_a_dynamic_batch(operator):
    layer = Layer(operator)
    inputs = [[t for p, t in enumerate(operator.tensors(batch)) if p in operator.batched] for batch in (3, 5)]
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        layer, tuple(inputs[0]), dynamic_shapes=((*[{0: batch}] * len(inputs[0]),),)
    )
    torch.testing.assert_close(program.module()(*inputs[1]), layer(*inputs[1]))


@needs_extension
@every_operator
def test_operator_stays_one_call_in_an_exported_program(operator):
    inputs = [t for p, t in enumerate(operator.tensors()) if p in operator.batched]
    program = torch.export.export(Layer(operator), tuple(inputs)).run_decompositions()
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert f"cnnfast.{operator.name}.default" in calls
    assert not any("convolution" in call or "addmm" in call for call in calls)


@every_operator
def test_operator_scripts(operator):
    """Saved and loaded they are with the modules: a file of a lone function forgets its default arguments."""
    scripted = torch.jit.script(getattr(ops, operator.name))
    tensors = operator.tensors()
    result = scripted(*operator.pack(*tensors), **operator.options)
    torch.testing.assert_close(result[0] if isinstance(result, tuple) else result, operator.run(*tensors))


class Tagged(torch.Tensor):
    """A subclass that adds nothing: PyTorch hands it through every function."""


@every_operator
def test_operator_on_a_tensor_subclass(operator):
    tensors = operator.tensors()
    expected = operator.run(*tensors)
    tagged = operator.run(tensors[0].as_subclass(Tagged), *tensors[1:])
    assert isinstance(tagged, Tagged)
    assert torch.equal(tagged.as_subclass(torch.Tensor), expected)


@every_operator
def test_operator_on_a_tensor_made_of_tensors(operator):
    """Such a tensor knows ATen's operators only; quantised and distributed tensors are of this kind."""
    tensors = operator.tensors()
    double = TwoTensor(tensors[0], 2 * tensors[0])
    result = operator.run(double, *tensors[1:])
    assert isinstance(result, TwoTensor)
    assert_near(result.a, operator.run(*tensors).double())
    assert_near(result.b, operator.run(2 * tensors[0], *tensors[1:]).double())
