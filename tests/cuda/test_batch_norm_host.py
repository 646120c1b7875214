"""The bodies of csrc/cuda/batch_norm.cuh on the host, under sanitizers, against float64.

Blocks and threads run in an order drawn by lot; outputs, shared memory and workspaces are NaN beforehand.
"""

import itertools

import pytest
import torch
from batch_norm_cases import (
    ACTIVATIONS,
    BY_RESULT,
    MASK,
    NONE,
    PLACEMENTS,
    RESULT,
    SHAPES,
    Case,
    activation_gradient,
    assert_images_near,
    backward_buffers,
    backward_setup,
    backward_truth,
    bits_of,
    call,
    floats,
    forward_buffers,
    forward_truth,
    result_floats,
    wanted_floats,
)
from host_program import ABSENT, DTYPES, Buffer, Placement, raw, run

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
QUICK = SHAPES[::3]


@pytest.fixture(scope="module")
def program(host_programs):
    return host_programs("batch_norm_main")


def cases(dtype, shapes=SHAPES, **options):
    """Every shape at a few placements, with other numbers of blocks and seeds."""
    for i, ((pixels, channels), placement) in enumerate(itertools.product(shapes, PLACEMENTS)):
        yield Case(pixels, channels, dtype, placement=placement, blocks=(1, 6, 40)[i % 3], seed=i, **options)


# ---- statistics


def statistics_buffers(case):
    return [case.image(case["input"]), wanted_floats(case.channels), wanted_floats(case.channels)]


def check_statistics(program, some):
    answers = run(program, [call(case, "statistics", statistics_buffers(case)) for case in some])
    for case, answer in zip(some, answers, strict=True):
        x = case["input"].double()
        mean, var = result_floats(answer, 1).double(), result_floats(answer, 2).double()
        spread = x.std(0, correction=0)
        assert ((mean - x.mean(0)).abs() <= 1e-6 * (x.mean(0).abs() + spread) + 1e-12).all(), case
        truth = x.var(0, correction=0)
        assert ((var - truth).abs() <= 4e-6 * truth + 1e-12).all(), case


@dtypes
def test_statistics(program, dtype):
    check_statistics(program, list(cases(dtype, QUICK)))


@pytest.mark.gpu_proof
@dtypes
def test_statistics_of_every_shape(program, dtype):
    check_statistics(program, list(cases(dtype)))


def test_statistics_do_not_cancel(program):
    """A spread of 1e-4 of the mean: the mean of squares less the squared mean has no digit left."""
    some = [Case(700, channels, offset=1e4, seed=channels) for channels in (3, 16)]
    check_statistics(program, some)


def test_statistics_with_an_outlier_in_front(program):
    """What a shift by the first value would not survive."""
    some = [Case(700, 16), Case(333, 5, blocks=1)]
    for case in some:
        case["input"][0] = 1e6
    check_statistics(program, some)


def test_statistics_of_equal_values_and_of_none(program):
    equal = Case(70, 12)
    equal["input"].fill_(3.7)
    none = Case(0, 12)
    answers = run(program, [call(case, "statistics", statistics_buffers(case)) for case in (equal, none)])
    assert (result_floats(answers[0], 2) == 0).all()
    assert (result_floats(answers[0], 1) == equal["input"][0]).all()
    assert result_floats(answers[1], 1).isnan().all() and result_floats(answers[1], 2).isnan().all()


def test_statistics_keep_nan_and_inf_in_their_channels(program):
    case = Case(64, 16)
    case["input"][5, 3], case["input"][40, 9] = torch.nan, torch.inf
    (answer,) = run(program, [call(case, "statistics", statistics_buffers(case))])
    for place in (1, 2):
        odd = ~result_floats(answer, place).isfinite()
        assert odd.nonzero().flatten().tolist() == [3, 9]


# ---- forward


def check_forward(program, some, mask=False):
    answers = run(program, [call(case, "forward", forward_buffers(case, mask)) for case in some])
    for case, answer in zip(some, answers, strict=True):
        truth = forward_truth(case)
        output = case.image(None, output=True).decode(answer.outputs[2])
        scale = max(1.0, forward_scale(case))
        assert_images_near(case, output, truth, scale, "output")
        if mask:
            bits = bits_of(answer.outputs[3], case.pixels, case.channels)
            assert torch.equal(bits, ~(output <= 0)), case


def forward_scale(case):
    gain = 1 / torch.sqrt(case["var"] + case.eps)
    if case.parameters:
        gain = gain * case["weight"].abs()
    return float((gain * (case["input"].float().abs().max() + case["mean"].abs())).max()) + 8.0


@dtypes
def test_forward(program, dtype):
    some = [
        case
        for i, activation in enumerate(("none", "relu", "silu"))
        for case in cases(dtype, QUICK[i % 2 :: 2], activation=activation, residual=i != 2, parameters=i != 0)
    ]
    check_forward(program, some)


@dtypes
def test_forward_with_mask(program, dtype):
    check_forward(program, list(cases(dtype, QUICK, activation="relu")), mask=True)


@pytest.mark.gpu_proof
@pytest.mark.parametrize("activation", ACTIVATIONS)
@dtypes
def test_forward_of_every_shape(program, dtype, activation):
    for residual, parameters in itertools.product((False, True), repeat=2):
        some = list(cases(dtype, activation=activation, residual=residual, parameters=parameters))
        check_forward(program, some, mask=activation == "relu")


def test_forward_as_the_end_of_a_convolution(program):
    """No statistics: scale and bias alone, into a slice."""
    case = Case(45, 24, torch.float16, placement=Placement(before=8, behind=16), activation="relu")
    buffers = forward_buffers(case)
    buffers[4] = buffers[5] = ABSENT
    (answer,) = run(program, [call(case, "forward", buffers)])
    truth = torch.relu(case["input"].double() * case["weight"] + case["bias"] + case["residual"].double())
    output = case.image(None, output=True).decode(answer.outputs[2])
    assert_images_near(case, output, truth, 20.0)


@dtypes
def test_forward_keeps_nan_and_inf_where_they_are(program, dtype):
    case = Case(64, 8, dtype, activation="relu", residual=False)
    x = case["input"]
    x[3, 1], x[10, 5], x[20, 6] = torch.nan, torch.inf, -torch.inf
    case["weight"].abs_()
    (answer,) = run(program, [call(case, "forward", forward_buffers(case, mask=True))])
    output = case.image(None, output=True).decode(answer.outputs[2]).double()
    torch.testing.assert_close(output, forward_truth(case), rtol=2e-2, atol=2e-2, equal_nan=True)
    bits = bits_of(answer.outputs[3], 64, 8)
    assert bits[3, 1] and bits[10, 5] and not bits[20, 6]


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_host_conversions_keep_every_16_bit_number(program, dtype):
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).view(-1, 256)
    case = Case(256, 256, dtype, residual=False, parameters=False)
    case.tensors["input"] = numbers
    buffers = forward_buffers(case)
    buffers[4] = buffers[5] = ABSENT
    (answer,) = run(program, [call(case, "forward", buffers)])
    output = case.image(None, output=True).decode(answer.outputs[2])
    assert torch.equal(output.isnan(), numbers.isnan())
    assert torch.equal(output[~output.isnan()], numbers[~numbers.isnan()])


# ---- backward


def check_backward(program, some, batch_statistics, source, residual):
    setups = [backward_setup(case, batch_statistics, source, residual) for case in some]
    calls = [
        call(case, "backward", backward_buffers(case, setup), batch_statistics, source)
        for case, setup in zip(some, setups, strict=True)
    ]
    for case, setup, answer in zip(some, setups, run(program, calls), strict=True):
        truth = backward_truth(case, setup)
        gain = truth_gain(case)
        image = case.image(None, output=True)
        assert_images_near(case, image.decode(answer.outputs[4]), truth["input"], 30 * gain, "input")
        if residual:
            assert_images_near(case, image.decode(answer.outputs[5]), truth["residual"], 4.0, "residual")
        sums = {"weight": 9, "bias": 10} | ({} if batch_statistics else {"mean": 11, "var": 12})
        for name, place in sums.items():
            allowed = 3e-6 * case.pixels * max(1.0, gain**3) + 1e-6
            error = (result_floats(answer, place).double() - truth[name]).abs().max()
            assert error <= allowed, f"{name}: {error:.3g} above {allowed:.3g}\n{case}"


def truth_gain(case):
    gain = 1 / torch.sqrt(case["var"] + case.eps)
    return float((gain * (case["weight"].abs() if case.parameters else 1.0)).max()) + 1.0


@pytest.mark.parametrize("residual", (True, False), ids=("residual", "no_residual"))
@dtypes
def test_backward_of_relu_by_its_bits(program, dtype, residual):
    check_backward(program, list(cases(dtype, QUICK, activation="relu")), True, MASK, residual)


@dtypes
def test_backward_with_given_statistics(program, dtype):
    some = list(cases(dtype, QUICK[1::2], activation="sigmoid", parameters=False))
    check_backward(program, some, False, RESULT, True)
    check_backward(program, list(cases(dtype, QUICK[::2])), False, NONE, False)


@pytest.mark.gpu_proof
@pytest.mark.parametrize("activation", ("none", *BY_RESULT))
@dtypes
def test_backward_of_every_shape(program, dtype, activation):
    sources = {"none": (NONE,), "relu": (MASK, RESULT)}.get(activation, (RESULT,))
    for source, batch, residual in itertools.product(sources, (False, True), (False, True)):
        check_backward(program, list(cases(dtype, activation=activation)), batch, source, residual)


def test_backward_of_nan_by_its_bits(program):
    case = Case(64, 8, activation="relu")
    setup = backward_setup(case, True, MASK, True)
    setup.result[3, 1] = torch.nan
    (answer,) = run(program, [call(case, "backward", backward_buffers(case, setup), True, MASK)])
    residual = case.image(None, output=True).decode(answer.outputs[5])
    assert residual[3, 1] == case["grad"][3, 1], "NaN passes the gradient, as ATen's threshold does"


# ---- blocks that do not keep the activation's result


def accumulate_buffers(case):
    before = torch.randn(case.pixels, case.channels, generator=torch.Generator().manual_seed(7))
    case.tensors["before"] = before.to(case.dtype)
    terms = torch.arange(2 * case.channels).float().view(2, -1) / case.channels
    case.tensors["factor"], case.tensors["constant"] = terms
    return [
        case.image(case["grad"]),
        case.image(case["input"]),
        case.image(case["before"], output=True),
        floats(case["mean"]),
        floats(case["var"]),
        floats(case["weight"]),
        floats(case["bias"]),
        wanted_floats(case.channels),
        wanted_floats(case.channels),
        *(Buffer(raw(case[name]), output=True) for name in ("factor", "constant")),
    ]


def check_accumulate(program, some):
    calls = [call(case, "accumulate", accumulate_buffers(case), flag=True) for case in some]
    for case, answer in zip(some, run(program, calls), strict=True):
        result = forward_truth(case).to(case.dtype).double()
        behind = activation_gradient(case.activation, case["grad"].double(), result).to(case.dtype).double()
        inverse = 1 / torch.sqrt(case["var"].double() + case.eps)
        scale, centred = inverse * case["weight"].double(), case["input"].double() - case["mean"].double()
        total, product = behind.sum(0), (behind * centred).sum(0)
        gain = truth_gain(case)
        grad = case.image(None, output=True).decode(answer.outputs[2])
        # Results that lie on the activation's edge may fall to either side of it.
        truth = case["before"].double() + scale * behind
        assert_images_near(case, grad, truth, 30 * gain, "accumulated")
        expected = {
            7: product * inverse,
            8: total,
            9: case["factor"].double() - scale * inverse**2 * product / case.pixels,
            10: case["constant"].double() - scale * total / case.pixels,
        }
        for place, value in expected.items():
            allowed = 3e-6 * case.pixels * gain**3 + 1e-5
            assert (result_floats(answer, place).double() - value).abs().max() <= allowed, (place, case)


@dtypes
def test_accumulate(program, dtype):
    some = list(cases(dtype, QUICK, activation="relu", residual=False))
    check_accumulate(program, some)


@dtypes
def test_terms_in_place(program, dtype):
    some = list(cases(dtype, QUICK))
    calls = []
    for case in some:
        case.tensors["factor"], case.tensors["constant"] = case["weight"], case["bias"]
        buffers = [case.image(case["grad"], output=True), case.image(case["input"])]
        calls.append(
            call(case, "terms", [*buffers, *(floats(case[n]) for n in ("mean", "factor", "constant"))])
        )
    for case, answer in zip(some, run(program, calls), strict=True):
        centred = case["input"].double() - case["mean"].double()
        truth = case["grad"].double() + case["factor"].double() * centred + case["constant"].double()
        actual = case.image(None, output=True).decode(answer.outputs[0])
        assert_images_near(case, actual, truth, 40.0)


# ---- the same bits from any schedule


@dtypes
def test_same_bits_for_every_order_of_threads(program, dtype):
    answers = []
    for seed in range(4):
        case = Case(333, 20, dtype, activation="relu", blocks=5)
        setup = backward_setup(case, True, MASK, True)
        buffers = [("statistics", statistics_buffers(case)), ("forward", forward_buffers(case, True))]
        buffers.append(("backward", backward_buffers(case, setup)))
        case.seed = seed
        calls = [call(case, name, some, True, MASK) for name, some in buffers]
        answers.append([answer.outputs for answer in run(program, calls)])
    assert all(other == answers[0] for other in answers[1:])


# ---- bytes


def traffic_per_value(answer, place, values):
    t = answer.traffic[place]
    return t.loaded / values, t.stored / values


@pytest.mark.parametrize("channels", (64, 48, 33, 3), ids="{}_channels".format)
@dtypes
def test_bytes_of_training(program, dtype, channels):
    """Normalise, ReLU and add: 2 reads, 1 write, bits. Backward: 4 reads, 2 writes, bits once."""
    case = Case(1600 if channels > 3 else 16000, channels, dtype, activation="relu", blocks=1)
    setup = backward_setup(case, True, MASK, True)
    forward, backward, statistics = run(
        program,
        [
            call(case, "forward", forward_buffers(case, mask=True)),
            call(case, "backward", backward_buffers(case, setup), True, MASK),
            call(case, "statistics", statistics_buffers(case)),
        ],
    )
    values, size = case.pixels * channels, case["input"].element_size()
    per = {place: traffic_per_value(forward, place, values) for place in range(4)}
    assert per == {0: (size, 0), 1: (size, 0), 2: (0, size), 3: (0, 1 / 8)}
    per = {place: traffic_per_value(backward, place, values) for place in range(6)}
    # first pass: gradient and input; last pass: the input, and what the first has left of the gradient
    assert per == {0: (size, 0), 1: (2 * size, 0), 2: (0, 0), 3: (1 / 8, 0), 4: (0, size), 5: (size, size)}
    reads, writes = sum(r for place, (r, _) in per.items() if place != 3), per[4][1] + per[5][1]
    assert reads <= 4 * size and writes <= 2 * size
    # every value once, and the first pixel's by every thread
    loaded, stored = traffic_per_value(statistics, 0, values)
    assert size <= loaded <= 1.15 * size and stored == 0


@pytest.mark.parametrize("channels", (64, 33), ids="{}_channels".format)
@dtypes
def test_accesses_are_of_16_bytes(program, dtype, channels):
    """In whole rows, that is: 1600 pixels are whole rows for any number of channels."""
    case = Case(1600, channels, dtype, activation="relu")
    (answer,) = run(program, [call(case, "forward", forward_buffers(case))])
    for place, kind in ((0, "load"), (1, "load"), (2, "store")):
        t = answer.traffic[place]
        count, size = (t.loads, t.loaded) if kind == "load" else (t.stores, t.stored)
        assert size == 16 * count, place
