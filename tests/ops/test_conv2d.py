"""conv2d forward against float64: geometries, layouts, epilogues, special values."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfast import ops, reference

from .geometries import GEOMETRIES, TYPICAL, Geometry
from .support import ACTIVATIONS, LAYOUTS, assert_near, doubles, in_layout, needs_extension, poison


def check(geometry, input, weight, bias=None, scale=None, residual=None, activation="none", relative=1e-5):
    poison(geometry.output_shape())
    actual = ops.conv2d(input, weight, bias, scale, residual, **geometry.options, activation=activation)
    tensors = doubles([input, weight, bias, scale, residual])
    truth = reference.conv2d(*tensors, **geometry.options, activation=activation)
    assert actual.dtype == torch.float32
    assert_near(actual, truth, relative)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_conv2d_values(geometry, layout):
    check(geometry, in_layout(geometry.input(), layout), geometry.weight(), geometry.channel_values())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("geometry", TYPICAL, ids=str)
def test_conv2d_input_layout(geometry, layout):
    check(geometry, in_layout(geometry.input(), layout), geometry.weight())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1)], ids=str)
def test_conv2d_input_with_sizes_of_one(size, layout):
    for channels, batch in itertools.product((1, 4), (1, 3)):
        geometry = Geometry("", size=size, channels=(channels, 5), batch=batch, padding=(1, 1))
        check(geometry, in_layout(geometry.input(), layout), geometry.weight())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv2d_weight_layout(layout):
    geometry = Geometry("", channels=(6, 9), padding=(1, 1))
    check(geometry, geometry.input(), in_layout(geometry.weight(), layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv2d_residual_layout(layout):
    geometry = Geometry("", channels=(6, 9), padding=(1, 1))
    residual = in_layout(torch.randn(geometry.output_shape()), layout)
    check(geometry, geometry.input(), geometry.weight(), residual=residual, activation="relu")


def test_conv2d_expanded_tensors():
    geometry = Geometry("", channels=(6, 9), batch=3, padding=(1, 1))
    image = torch.randn(1, 6, 9, 8).expand(3, -1, -1, -1)
    grey = torch.randn(3, 1, 9, 8).expand(-1, 6, -1, -1)
    same_bias = torch.randn(1).expand(9)
    residual = torch.randn(9, 1, 1).expand(3, 9, 9, 8)
    for input in (image, grey):
        check(geometry, input, geometry.weight(), same_bias, residual=residual)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("parts", list(itertools.product((False, True), repeat=3)), ids=str)
def test_conv2d_epilogue(parts, activation):
    for geometry in TYPICAL:
        bias = geometry.channel_values() if parts[0] else None
        scale = geometry.channel_values() if parts[1] else None
        residual = torch.randn(geometry.output_shape()) if parts[2] else None
        check(geometry, geometry.input(), geometry.weight(), bias, scale, residual, activation)


def test_conv2d_every_channel_count_up_to_forty():
    """Tails of vectors: each number of input and output channels at least once."""
    for channels in range(1, 41):
        geometry = Geometry("", size=(5, 6), channels=(channels, 41 - channels), padding=(1, 1))
        check(geometry, geometry.input(), geometry.weight(), geometry.channel_values(), activation="relu")


def test_conv2d_every_width_up_to_forty():
    for width in range(1, 41):
        geometry = Geometry("", size=(3, width), channels=(3, 5), batch=1, padding=(1, 1))
        check(geometry, geometry.input(), geometry.weight(), geometry.channel_values(), activation="relu")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_conv2d_random_geometry(data):
    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    groups = data.draw(st.sampled_from([1, 1, 1, 2, 3]))
    kernel, dilation, padding = pair(1, 4), pair(1, 3), pair(0, 3)
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    geometry = Geometry(
        "random",
        size=tuple(low + extra for low, extra in zip(smallest, pair(0, 12), strict=True)),
        channels=tuple(groups * n for n in pair(1, 20)),
        kernel=kernel,
        stride=pair(1, 4),
        padding=padding,
        dilation=dilation,
        groups=groups,
        batch=data.draw(st.integers(1, 3)),
    )
    layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
    activation = data.draw(st.sampled_from(ACTIVATIONS))
    residual = torch.randn(geometry.output_shape()) if data.draw(st.booleans()) else None
    input = in_layout(geometry.input(), layout)
    check(geometry, input, geometry.weight(), geometry.channel_values(), None, residual, activation)


@pytest.mark.parametrize("geometry", TYPICAL, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_conv2d_special_values_stay_in_their_receptive_field(geometry, value):
    for activation in ACTIVATIONS:
        input = geometry.input()
        input[0, 1, 3, 2] = value
        check(geometry, input, geometry.weight(), activation=activation)


def test_conv2d_special_values_in_other_arguments():
    geometry = Geometry(
        "", channels=(6, 9)
    )  # no padding: whether Inf meets a padded zero is nobody's promise
    weight, bias = geometry.weight(), geometry.channel_values()
    weight[2, 1, 0, 2] = float("inf")
    bias[4] = float("nan")
    residual = torch.randn(geometry.output_shape())
    residual[1, 5, 2, 2] = float("nan")
    check(geometry, geometry.input(), weight, bias, None, residual, "relu")


def test_conv2d_relu_gives_no_negative_zero_or_clipped_nan():
    input = torch.tensor([-1.0, -0.0, 0.0, float("nan"), float("-inf"), float("inf")]).view(1, 1, 1, 6)
    output = ops.conv2d(input, torch.ones(1, 1, 1, 1), activation="relu").flatten()
    torch.testing.assert_close(output, torch.relu(input).flatten(), equal_nan=True, rtol=0, atol=0)


def test_conv2d_large_and_tiny_values():
    geometry = Geometry("", channels=(6, 9), padding=(1, 1))
    for factor in (1e30, 1e-30):
        check(geometry, geometry.input() * factor, geometry.weight() / factor)
    bias = torch.full((9,), 200.0)
    for sign in (1.0, -1.0):  # sigmoid far out: 1 and 0, without overflow
        check(geometry, geometry.input(), geometry.weight(), bias * sign, activation="sigmoid")


@pytest.mark.parametrize("geometry", TYPICAL, ids=str)
def test_conv2d_batch_of_zero(geometry):
    input = geometry.input()[:0]
    residual = torch.randn(geometry.output_shape())[:0]
    output = ops.conv2d(input, geometry.weight(), residual=residual, **geometry.options, activation="relu")
    assert output.shape == (0, *geometry.output_shape()[1:])


def test_conv2d_one_number_for_a_pair():
    input, weight = torch.randn(1, 4, 9, 9), torch.randn(6, 4, 3, 3)
    torch.testing.assert_close(
        ops.conv2d(input, weight, stride=2, padding=1, dilation=2),
        ops.conv2d(input, weight, stride=(2, 2), padding=[1, 1], dilation=(2, 2)),
    )


@needs_extension
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("geometry", TYPICAL, ids=str)
def test_conv2d_output_is_channels_last(geometry, layout):
    output = ops.conv2d(in_layout(geometry.input(), layout), geometry.weight(), **geometry.options)
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_conv2d_output_is_memory_of_its_own():
    input = torch.randn(2, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    weight, residual = torch.eye(4).view(4, 4, 1, 1), torch.zeros(2, 4, 5, 5)
    output = ops.conv2d(input, weight, residual=residual)
    pointers = {t.untyped_storage().data_ptr() for t in (input, weight, residual, output)}
    assert len(pointers) == 4


def test_conv2d_arguments_are_left_alone():
    geometry = Geometry("", channels=(6, 9), padding=(1, 1))
    tensors = [geometry.input(), geometry.weight(), geometry.channel_values(), geometry.channel_values()]
    tensors.append(torch.randn(geometry.output_shape()))
    before = [t.clone() for t in tensors]
    ops.conv2d(*tensors, **geometry.options, activation="relu")
    assert all(map(torch.equal, tensors, before))


def test_conv2d_offsets_beyond_32_bits():
    """The second image lies 2^31 elements behind the first; the memory between them is never touched."""
    try:
        memory = torch.empty(2**31 + 4096)
    except RuntimeError:
        pytest.skip("not enough address space")
    geometry = Geometry("", size=(8, 8), channels=(3, 5), padding=(1, 1))
    values = geometry.input()
    for strides in ((2**31, 64, 8, 1), (2**31, 1, 24, 3)):
        input = memory.as_strided(values.shape, strides)
        input.copy_(values)
        check(geometry, input, geometry.weight())
