"""Networks that a plan cannot hold: every layer concerned is named, with a reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnfast.plan.build import UnsupportedNetworkError, build

from .test_plan_build import Both, Lambda

IMAGE = torch.randn(2, 3, 8, 8)


def refusal(model, x=IMAGE):
    with pytest.raises(UnsupportedNetworkError) as caught:
        build(model, (x,))
    assert "without strict=True" in str(caught.value)
    return str(caught.value)


def test_refuses_unknown_layers_all_at_once():
    text = refusal(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 2, 2, dilation=2)
        )
    )
    assert "1 (Softplus): a plan of this version has no node for it" in text
    assert "3 (ConvTranspose2d)" in text and "Conv2d): a plan" not in text.replace("(ConvTranspose2d)", "")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "arguments that a plan does not know"),
        (lambda x: x.contiguous(memory_format=torch.channels_last).chunk(chunks=3), "cuts channels (1) only"),
        (lambda x: x**x, "(pow): it raises to the power of values"),
        (lambda x: x.to(torch.float64).to(torch.float32), "it becomes torch.float64"),
        (lambda x: 2 / x, "truediv (truediv): it divides a constant by values"),
        (lambda x: x * x.size(2), "more than numbers of channels"),
        (lambda x: x[:, ::2], "do not lie side by side"),
        (lambda x: x[:, :, 1], "takes one row or column"),
        (lambda x: x[:, :, :5], "leaves out fixed numbers on each side"),
        (lambda x: x[:, :2, 1:], "write two slices"),
        (lambda x: x.chunk(2, 2)[0], "cuts channels (1) only"),
        (lambda x: x.permute(0, 2, 1, 3), "it permutes to"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), "pads rows and columns only"),
        (lambda x: F.pad(x, (1, -1, 1, 1), mode="reflect"), "four sides"),
        (lambda x: F.pad(x, (0, x.size(2) // 2)), "write it as numbers"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), "bicubic"),
        (lambda x: F.interpolate(x, scale_factor=1.1), "no multiple of a power of two"),
        (lambda x: F.interpolate(x, size=x.size(2) * 2), "computed in the forward"),
        (lambda x: F.layer_norm(x, (8, 8)), "it normalises [8, 8]"),
        (lambda x: F.layer_norm(x, x.shape[1:]), "more than numbers of channels"),
        (lambda x: F.group_norm(x, x.shape[2] // 8), "more than numbers of channels"),
        (lambda x: x.mean((2, 3)).squeeze(), "perhaps the batch"),
        (lambda x: x * x.mean(3, keepdim=True), "over dimensions (2, 3)"),
        (lambda x: x * x.sum(3, keepdim=True), "sums channels and paths only"),
        (lambda x: x * x.max(3, keepdim=True)[0], "over channels"),
        (lambda x: x.max(1)[1], "of what a plan has 1 of"),
        (lambda x: x.softmax(2), "softmax over channels"),
        (lambda x: x.flatten(1).softmax(1), "behind a linear layer or a mean"),
        (lambda x: x.mean((2, 3)).unsqueeze(0), "in front of the batch"),
        (lambda x: x.norm(p=1, dim=(2, 3), keepdim=True), "norm 2 over images"),
        (lambda x: torch.stack((x, x)), "on dimension 1 only"),
        (lambda x: x @ x, "softmax over them only"),
        (lambda x: F.adaptive_avg_pool2d(x, x.size(2) // 2), "write one or two numbers"),
        (lambda x: torch.cat([x, x]), "concatenates on dimension 0"),
        (lambda x: x.view(2, -1), "x.view(x.size(0), -1)"),
        (lambda x: x.view(-1, 96), "x.view(x.size(0), -1)"),
        (lambda x: x.view(x.size(0), 4, -1), "x.view(x.size(0), -1)"),
        (lambda x: x.view(x.size(1), -1), "x.view(x.size(0), -1)"),
        (lambda x: x.flatten(), "flattens from dimension 1"),
        (lambda x: x.mean(), "reduces images over"),
        (lambda x: F.dropout(x), "training=self.training"),
        (lambda x: F.max_pool2d(x, x.size(2) // 2), "write it as a number"),
        (lambda x: x.transpose(2, 3), "it permutes to"),
        (lambda x: (x, x), "several values"),
        (lambda x: {"out": x}, "several values"),
        (lambda x: x + F.avg_pool2d(x, (1, 8)), "repeats"),
        (lambda x: x + F.avg_pool2d(x, (1, 8)).expand_as(x), "expands (N, C, 1, 1) only"),
        (lambda x: torch.relu(x.mean((2, 3), keepdim=True).expand_as(x)), "laid out as expanded"),
        (lambda x: F.linear(x, torch.eye(8)), "register it as a buffer"),
        (lambda x: x[0], "getitem"),
        (lambda x: x if x.sum() > 0 else -x, "decides by the values"),
    ],
)
def test_refuses_functions(function, words):
    assert words in refusal(nn.Sequential(nn.Conv2d(3, 3, 1), Lambda(function)))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.BatchNorm2d(3, track_running_stats=False), "statistics of the batch in evaluation too"),
        (nn.MaxPool2d(2, return_indices=True), "indices"),
        (nn.Linear(8, 3), "flatten it first"),
        (nn.Flatten(2), "laid out as pixels"),
        (nn.Flatten(0, 1), "flattens from dimension 1"),
        (nn.ConvTranspose2d(3, 3, 2, 2, output_padding=1), "output_padding"),
        (nn.ConvTranspose2d(3, 3, 2, dilation=2), "without dilation"),
        (nn.ConvTranspose2d(3, 6, 2, groups=3), "one input and output channel"),
        (nn.Softmax(2), "softmax over channels"),
        (nn.Unflatten(1, (1, 3)), "right behind an input"),
    ],
    ids=str,
)
def test_refuses_options(layer, words):
    assert words in refusal(nn.Sequential(layer))


def test_refuses_hooks():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU()))
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    assert "hooks" in refusal(model)
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    model.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    assert "hooks" in refusal(model)


def test_refuses_what_a_subclass_adds_in_its_own_forward():
    class Halved(nn.ReLU):
        def forward(self, x):
            return super().forward(x) // 2

    assert "0 (floordiv): a plan of this version has no node" in refusal(nn.Sequential(Halved()))


def test_refuses_batch_norm_of_features_alone():
    assert "behind a linear layer or a mean only" in refusal(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192)))


def test_refuses_several_inputs_of_different_use():
    text = refusal(nn.Sequential(Lambda(lambda x: x.view(-1, 3, 8, 8) + x**x)))
    assert "pow" in text


def test_refuses_input_read_raw_and_reshaped():
    class Net(nn.Module):
        def forward(self, x):
            return x.view(-1, 3, 8, 8) + torch.relu(x)

    assert "reshaped elsewhere" in refusal(Net())


def test_refuses_batch_size_of_a_reshaped_input():
    """x.size(0) of an input that is cut into images is not their number."""

    class Net(nn.Module):
        def forward(self, x):
            n = x.size(0)
            return torch.relu(x.view(-1, 3, 8, 8)).view(n, -1)

    assert "it reshapes to" in refusal(Net())


def test_refuses_in_place_write_into_a_view():
    def function(x):
        y = x.flatten(1)
        y.relu_()
        return x

    assert "in another shape" in refusal(nn.Sequential(nn.Conv2d(3, 3, 1), Lambda(function)))


def test_refuses_network_that_computes_nothing():
    assert "computes nothing" in refusal(nn.Identity())


def test_refuses_forward_with_control_flow():
    class Odd(nn.Module):
        def forward(self, x):
            return x.relu() if x.max() > 0 else x

    assert "0 (Odd): its forward decides by the values" in refusal(nn.Sequential(Odd()))


def test_refuses_what_only_looks_supported_behind_a_refused_layer():
    """Layers behind a refused one are not blamed."""
    text = refusal(nn.Sequential(nn.Softplus(), nn.Conv2d(3, 3, 1), nn.ReLU()))
    assert text.count("): ") == 1
    text = refusal(Both(lambda a, b: a + b, nn.Softplus(), nn.Conv2d(3, 3, 1)))
    assert text.count("): ") == 1
