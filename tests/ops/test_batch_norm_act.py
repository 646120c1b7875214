"""batch_norm_act, the second half of conv2d_batch_norm, against eager PyTorch in float64."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from cnnfast import reference

from .support import ACTIVATIONS, LAYOUTS, assert_near, in_layout, needs_extension, poison

pytestmark = needs_extension


def check(input, mean, var, weight=None, bias=None, residual=None, eps=1e-5, activation="none"):
    poison(input.shape)
    output = torch.ops.cnnfast.batch_norm_act(
        input, mean, var, weight, bias, residual, eps=eps, activation=activation
    )
    parts = [None if t is None else t.double() for t in (input, mean, var, weight, bias)]
    truth = F.batch_norm(*parts, False, 0.0, eps)
    truth = truth if residual is None else truth + residual.double()
    assert_near(output, reference.activation.activate(truth, activation))
    assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("parts", list(itertools.product((False, True), repeat=3)), ids=str)
def test_batch_norm_act(parts, activation):
    for channels in (1, 7, 16, 33):
        weight, bias = (torch.randn(channels) if present else None for present in parts[:2])
        residual = torch.randn(3, channels, 5, 6) if parts[2] else None
        mean, var = torch.randn(channels), torch.rand(channels) + 0.1
        check(torch.randn(3, channels, 5, 6), mean, var, weight, bias, residual, activation=activation)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_norm_act_layout(layout):
    input, residual = (in_layout(torch.randn(2, 5, 6, 7), layout) for _ in range(2))
    check(input, torch.randn(5), torch.rand(5), residual=residual, eps=0.1, activation="relu")


def test_batch_norm_act_passes_opcheck():
    tensors = [torch.randn(2, 5, 6, 7), torch.randn(5), torch.rand(5), torch.randn(5), torch.randn(5)]
    options = {"activation": "sigmoid"}
    torch.library.opcheck(torch.ops.cnnfast.batch_norm_act.default, tensors, options)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"input": torch.randn(5, 6, 7)}, ["input", "[5, 6, 7]"]),
        ({"mean": torch.randn(4)}, ["mean", "(5)", "[4]"]),
        ({"weight": torch.randn(6)}, ["weight", "(5)", "[6]"]),
        ({"residual": torch.randn(2, 5, 6, 8)}, ["residual", "[2, 5, 6, 8]", "[2, 5, 6, 7]"]),
        ({"activation": "tanh"}, ["activation", "tanh"]),
    ],
    ids=["rank", "mean", "weight", "residual", "activation"],
)
def test_batch_norm_act_bad_argument(change, words):
    arguments = {"input": torch.randn(2, 5, 6, 7), "mean": torch.randn(5), "var": torch.rand(5), **change}
    with pytest.raises(RuntimeError) as error:
        torch.ops.cnnfast.batch_norm_act(**arguments)
    message = str(error.value).splitlines()[0]
    assert message.startswith("cnnfast::batch_norm_act: ") and all(word in message for word in words), message
