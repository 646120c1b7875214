"""Bad arguments: an error that names the operator, the argument and the shapes, and nothing changed."""

import re

import pytest
import torch

from cnnfast import ops

from .support import needs_extension


def images(*shape, **options):
    return torch.randn(*shape, **options)


def conv(input=(2, 3, 8, 9), weight=(8, 3, 3, 3), **kwargs):
    """A call of a convolution; shapes become random tensors, tensors stay."""
    tensors = {"input": input, "weight": weight, **kwargs}
    made = {k: torch.randn(v) if k in SHAPED and isinstance(v, tuple) else v for k, v in tensors.items()}
    return lambda operator: operator(**made)


SHAPED = ("input", "weight", "bias", "scale", "residual", "bn_weight", "bn_bias")

# Of both convolutions: the call, and what the message must name beside the operator.
CONVOLUTIONS = {
    "input_rank": (conv(input=(3, 8, 9)), ["input", "4", "[3, 8, 9]"]),
    "weight_rank": (conv(weight=(8, 3, 3)), ["weight", "4", "[8, 3, 3]"]),
    "channels": (conv(weight=(8, 4, 3, 3)), ["input", "3 channels", "[8, 4, 3, 3]", "groups=1", "4"]),
    "channels_of_groups": (conv(groups=3), ["input", "3 channels", "[8, 3, 3, 3]", "groups=3", "9"]),
    "output_groups": (
        conv(input=(2, 6, 8, 8), weight=(7, 3, 3, 3), groups=2),
        ["7", "output", "[7, 3, 3, 3]", "groups=2"],
    ),
    "groups_zero": (conv(groups=0), ["groups", "0"]),
    "groups_negative": (conv(groups=-1), ["groups", "-1"]),
    "stride_zero": (conv(stride=(0, 1)), ["stride", "[0, 1]"]),
    "stride_negative": (conv(stride=-2), ["stride", "-2"]),
    "padding_negative": (conv(padding=(0, -1)), ["padding", "[0, -1]"]),
    "dilation_zero": (conv(dilation=0), ["dilation", "[0, 0]"]),
    "three_strides": (conv(stride=(1, 1, 1)), ["stride", "[1, 1, 1]"]),
    "kernel_too_large": (conv(input=(2, 3, 2, 9)), ["weight", "[8, 3, 3, 3]", "[2, 3, 2, 9]", "padding"]),
    "dilated_kernel_too_large": (conv(dilation=4), ["dilation", "[4, 4]", "[2, 3, 8, 9]"]),
    "no_channels": (conv(input=(2, 0, 8, 9), weight=(8, 0, 3, 3)), ["[2, 0, 8, 9]", "channels"]),
    "no_output_channels": (conv(weight=(0, 3, 3, 3)), ["[0, 3, 3, 3]", "channels"]),
    "no_height": (conv(input=(2, 3, 0, 9), padding=1), ["[2, 3, 0, 9]", "empty"]),
    "no_width": (conv(input=(2, 3, 9, 0), padding=1), ["[2, 3, 9, 0]", "empty"]),
    "empty_kernel": (conv(weight=(8, 3, 0, 3)), ["[8, 3, 0, 3]", "empty"]),
    "bias_size": (conv(bias=(7,)), ["bias", "8", "[7]"]),
    "bias_rank": (conv(bias=(8, 1)), ["bias", "8", "[8, 1]"]),
    "residual_shape": (conv(residual=(2, 8, 8, 9)), ["residual", "[2, 8, 8, 9]", "[2, 8, 6, 7]"]),
    "residual_to_broadcast": (conv(residual=(1, 8, 6, 7)), ["residual", "[1, 8, 6, 7]", "[2, 8, 6, 7]"]),
    "activation": (conv(activation="softplus"), ["activation", "none", "relu", "sigmoid", "softplus"]),
    "weight_dtype": (conv(weight=images(8, 3, 3, 3).double()), ["input", "Float", "weight", "Double"]),
    "input_dtype": (conv(input=images(2, 3, 8, 9).half()), ["Half", "weight", "Float"]),
    "bias_dtype": (conv(bias=images(8).double()), ["bias", "Double", "Float"]),
    "residual_dtype": (conv(residual=images(2, 8, 6, 7).bfloat16()), ["residual", "BFloat16"]),
    "weight_device": (conv(weight=images(8, 3, 3, 3, device="meta")), ["input", "cpu", "weight", "meta"]),
    "input_device": (conv(input=images(2, 3, 8, 9, device="meta")), ["meta", "weight", "cpu"]),
    "bias_device": (conv(bias=images(8, device="meta")), ["bias", "meta", "cpu"]),
}
CONV2D = {
    "scale_size": (conv(scale=(9,)), ["scale", "8", "[9]"]),
    "scale_dtype": (conv(scale=images(8).double()), ["scale", "Double"]),
}
CONV2D_BATCH_NORM = {
    "bn_weight_size": (conv(bn_weight=(3,)), ["bn_weight", "8", "[3]"]),
    "bn_bias_size": (conv(bn_bias=(3,)), ["bn_bias", "8", "[3]"]),
    "bn_weight_dtype": (conv(bn_weight=images(8).double()), ["bn_weight", "Double"]),
    "one_value": (conv(input=(1, 3, 3, 3)), ["more than one value per channel", "[1, 8, 1, 1]"]),
    "integers": (
        conv(input=torch.ones(2, 3, 8, 9).int(), weight=torch.ones(8, 3, 3, 3).int()),
        ["input", "floating", "Int"],
    ),
}
BN_ACT_CONV2D = {
    **{name: case for name, case in CONVOLUTIONS.items() if name != "activation"},
    "bn_weight_size": (conv(bn_weight=(8,)), ["bn_weight", "3", "[8]"]),
    "bn_bias_size": (conv(bn_bias=(8,)), ["bn_bias", "3", "[8]"]),
    "bn_weight_dtype": (conv(bn_weight=images(3).double()), ["bn_weight", "Double"]),
    "mean_size": (conv(running_mean=images(8), running_var=images(8)), ["mean", "3", "[8]"]),
    "mean_device": (
        conv(running_mean=images(3, device="meta"), running_var=images(3)),
        ["input", "cpu", "mean", "meta"],
    ),
    "one_value": (
        conv(input=(1, 3, 1, 1), padding=1),
        ["more than one value per channel", "[1, 3, 1, 1]"],
    ),
    "integers": (
        conv(input=torch.ones(2, 3, 8, 9).int(), weight=torch.ones(8, 3, 3, 3).int()),
        ["input", "floating", "Int"],
    ),
    "pre_activation": (
        conv(pre_activation="softplus"),
        ["activation", "none", "relu", "sigmoid", "softplus"],
    ),
}


def call(*args, **kwargs):
    args = [torch.randn(a) if isinstance(a, tuple) and i < 3 else a for i, a in enumerate(args)]
    return lambda operator: operator(*args, **kwargs)


LINEAR = {
    "features": (call((2, 5), (4, 6)), ["input", "[2, 5]", "5", "[4, 6]", "6"]),
    "weight_rank": (call((2, 5), (5,)), ["weight", "[5]"]),
    "scalar": (call(torch.tensor(1.0), (4, 6)), ["input", "[]"]),
    "bias_size": (call((2, 6), (4, 6), (6,)), ["bias", "4", "[6]"]),
    "dtype": (call(images(2, 6).double(), (4, 6)), ["Double", "weight", "Float"]),
    "device": (call(images(2, 6, device="meta"), (4, 6)), ["meta", "weight", "cpu"]),
    "activation": (call((2, 6), (4, 6), activation="tanhh"), ["activation", "relu", "tanhh"]),
}

BATCH_NORM2D = {
    "rank": (call((3, 8, 9)), ["input", "4", "[3, 8, 9]"]),
    "weight_size": (call((2, 3, 8, 9), (4,)), ["weight", "3", "[4]"]),
    "bias_size": (call((2, 3, 8, 9), (3,), (4,)), ["bias", "3", "[4]"]),
    "weight_dtype": (call((2, 3, 8, 9), images(3).double()), ["input", "Float", "weight", "Double"]),
    "weight_device": (call((2, 3, 8, 9), images(3, device="meta")), ["cpu", "weight", "meta"]),
    "residual_shape": (
        call((2, 3, 8, 9), residual=images(1, 3, 8, 9)),
        ["residual", "[1, 3, 8, 9]", "[2, 3, 8, 9]"],
    ),
    "residual_dtype": (call((2, 3, 8, 9), residual=images(2, 3, 8, 9).half()), ["residual", "Half"]),
    "one_value": (call((1, 3, 1, 1)), ["more than one value per channel", "[1, 3, 1, 1]"]),
    "integers": (call(torch.ones(2, 3, 8, 9).int()), ["input", "floating", "Int"]),
    "activation": (call((2, 3, 8, 9), activation="tanhh"), ["activation", "relu", "tanhh"]),
}
GROUP_NORM2D = {
    "rank": (call((3, 8, 9), 1), ["input", "4", "[3, 8, 9]"]),
    "groups_zero": (call((2, 6, 8, 9), 0), ["groups=0", "[2, 6, 8, 9]"]),
    "groups_negative": (call((2, 6, 8, 9), -2), ["groups=-2", "[2, 6, 8, 9]"]),
    "groups_that_do_not_divide": (call((2, 6, 8, 9), 4), ["groups=4", "divide", "[2, 6, 8, 9]"]),
    "weight_size": (call((2, 6, 8, 9), 3, images(4)), ["weight", "6", "[4]"]),
    "bias_size": (call((2, 6, 8, 9), 3, images(6), images(4)), ["bias", "6", "[4]"]),
    "weight_dtype": (call((2, 6, 8, 9), 3, images(6).double()), ["input", "Float", "weight", "Double"]),
    "weight_device": (call((2, 6, 8, 9), 3, images(6, device="meta")), ["cpu", "weight", "meta"]),
    "integers": (call(torch.ones(2, 6, 8, 9).int(), 3), ["input", "floating", "Int"]),
    "activation": (call((2, 6, 8, 9), 3, activation="tanhh"), ["activation", "relu", "tanhh"]),
}
LOCAL_RESPONSE_NORM = {
    "rank": (call((3, 8, 9), 5), ["input", "4", "[3, 8, 9]"]),
    "size_zero": (call(images(2, 3, 8, 9), 0), ["size", "at least 1", "0"]),
    "size_negative": (call(images(2, 3, 8, 9), -3), ["size", "at least 1", "-3"]),
    "integers": (call(torch.ones(2, 3, 8, 9).int(), 5), ["input", "floating", "Int"]),
}
GLOBAL_AVG_POOL2D = {
    "rank": (call((3, 8, 9)), ["input", "4", "[3, 8, 9]"]),
    "no_channels": (call((2, 0, 4, 8)), ["[2, 0, 4, 8]", "channels"]),
    "no_height": (call((2, 3, 0, 8)), ["[2, 3, 0, 8]", "empty"]),
    "integers": (call(torch.ones(2, 3, 8, 9).int()), ["input", "floating", "Int"]),
}


def pool(shape, *args, **kwargs):
    return lambda operator: operator(torch.randn(shape), *args, **kwargs)


POOLS = {
    "rank": (pool((3, 8), 2), ["input", "[3, 8]"]),
    "kernel_zero": (pool((2, 3, 8, 8), (2, 0)), ["kernel_size", "[2, 0]"]),
    "stride_zero": (pool((2, 3, 8, 8), 2, (0, 1)), ["stride", "[0, 1]"]),
    "padding_negative": (pool((2, 3, 8, 8), 2, 2, -1), ["padding", "-1"]),
    "padding_beyond_half": (pool((2, 3, 8, 8), 3, 2, 2), ["padding", "half", "kernel_size", "[3, 3]"]),
    "kernel_too_large": (pool((2, 3, 4, 8), 5), ["kernel_size", "[5, 5]", "[2, 3, 4, 8]"]),
    "no_channels": (pool((2, 0, 4, 8), 2), ["[2, 0, 4, 8]", "channels"]),
    "no_height": (pool((2, 3, 0, 8), 2), ["[2, 3, 0, 8]", "empty"]),
}
MAX_POOL2D = {"dilation_zero": (pool((2, 3, 8, 8), 2, 2, 0, (1, 0)), ["dilation", "[1, 0]"])}
AVG_POOL2D = {"divisor_zero": (pool((2, 3, 8, 8), 2, divisor_override=0), ["divisor_override", "0"])}

OPERATORS = {
    "conv2d": {**CONVOLUTIONS, **CONV2D},
    "conv2d_batch_norm": {**CONVOLUTIONS, **CONV2D_BATCH_NORM},
    "batch_norm2d": BATCH_NORM2D,
    "group_norm2d": GROUP_NORM2D,
    "bn_act_conv2d": BN_ACT_CONV2D,
    "local_response_norm": LOCAL_RESPONSE_NORM,
    "global_avg_pool2d": GLOBAL_AVG_POOL2D,
    "linear": LINEAR,
    "max_pool2d": {**POOLS, **MAX_POOL2D},
    "avg_pool2d": {**POOLS, **AVG_POOL2D},
}
CASES = [
    pytest.param(operator, *case, id=f"{operator}-{name}")
    for operator, cases in OPERATORS.items()
    for name, case in cases.items()
]


@needs_extension
@pytest.mark.parametrize("operator, run, words", CASES)
def test_bad_argument(operator, run, words):
    kind = ValueError if "more than one value per channel" in words else RuntimeError  # as eager PyTorch
    with pytest.raises(kind) as error:
        run(getattr(ops, operator))
    message = str(error.value).splitlines()[0]
    assert message.startswith(f"cnnfast::{operator}: "), message
    missing = [word for word in words if not re.search(rf"(?<![\w.]){re.escape(word)}", message)]
    assert not missing, f"{message!r} does not name {missing}"


@pytest.mark.parametrize("operator", [ops.conv2d, ops.linear], ids=["conv2d", "linear"])
def test_unknown_activation_names_the_choices(operator):
    tensors = (
        (images(1, 2, 3, 3), images(4, 2, 3, 3)) if operator is ops.conv2d else (images(2, 3), images(4, 3))
    )
    with pytest.raises(RuntimeError, match="none.*relu.*sigmoid.*softplus"):
        operator(*tensors, activation="softplus")


@needs_extension
def test_bad_argument_is_an_error_for_meta_tensors_too():
    with pytest.raises(RuntimeError, match="cnnfast::conv2d: input has 3 channels"):
        ops.conv2d(torch.randn(2, 3, 8, 8, device="meta"), torch.randn(4, 5, 3, 3, device="meta"))
