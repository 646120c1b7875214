"""Whole blocks as one call: when they are, when not, and that they follow what changes later."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast

from .networks import liven
from .support import IMAGE, Net, check, compare_steps, operators
from .test_fuse_values import assert_close


def conv(*arguments, **options):
    return nn.Conv2d(*arguments, **options)


def two_branches(function=None, **replaced):
    layers = {"a": conv(3, 4, 1), "b": conv(3, 2, 3, padding=1), "c": conv(2, 5, 1)}
    join = lambda net, x: torch.cat([F.relu(net.a(x)), torch.sigmoid(net.c(net.b(x)))], dim=1)  # noqa: E731
    return Net(function or join, **{**layers, **replaced})


def test_fuse_branches_are_one_call():
    fused = check(two_branches(), strict=True)
    assert operators(fused) == {"a": "inception"}
    assert fused.report()["a"].runs_as == "cnnfast.ops.inception: a | b + c"
    assert fused.report()["c"].runs_as == "with a"


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: torch.cat((net.a(x), x), 1),
        lambda net, x: torch.concat([x, net.c(net.b(x)), F.max_pool2d(x, 3, 1, 1)], dim=1),
        lambda net, x: torch.cat(tensors=(net.a(x), net.b(F.avg_pool2d(x, (3, 1), 1, (1, 0)))), dim=1),
        lambda net, x: torch.cat([net.a(F.max_pool2d(x, 2)), net.c(net.b(F.avg_pool2d(x, 2)))], 1),
    ],
    ids=["input itself", "pool alone", "pool first", "smaller images"],
)
def test_fuse_branches_of_several_kinds(function):
    assert set(operators(check(two_branches(function))).values()) == {"inception"}


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: torch.cat([net.a(x), net.c(net.b(x)).transpose(2, 3).transpose(2, 3)], 1),
        lambda net, x: torch.cat([net.a(x), net.c(net.b(F.relu(x)))], 1),
        lambda net, x: torch.cat([net.a(x)[:, :2], net.b(x), net.c(x[:, :2])], 0 + 1)[:, :9],
        lambda net, x: torch.cat([F.pad(net.a(x), (0, 0, 0, 0)), net.c(net.b(x))], 1),
    ],
    ids=["another operation at the end", "other beginnings", "slices", "pad"],
)
def test_fuse_branches_that_are_no_block(function):
    fused = check(two_branches(function))
    assert "inception" not in operators(fused).values()
    assert set(operators(fused).values()) == {"conv2d"}


def test_fuse_concatenation_on_another_dimension_is_no_block():
    model = Net(lambda net, x: torch.cat([net.a(x), net.b(x)], 2), a=conv(3, 4, 1), b=conv(3, 4, 1))
    assert operators(check(model)) == {"a": "conv2d", "b": "conv2d"}


def test_fuse_value_between_stages_used_elsewhere():
    def forward(net, x):
        y = net.b(x)
        return torch.cat([net.a(x), net.c(y)], 1).sum(1, keepdim=True) + y

    assert set(operators(check(two_branches(forward))).values()) == {"conv2d"}


def test_fuse_value_concatenated_twice():
    def forward(net, x):
        y = net.a(x)
        return torch.cat([y, net.c(net.b(x)), y], 1)

    assert set(operators(check(two_branches(forward))).values()) == {"conv2d"}


@pytest.mark.parametrize(
    "layer",
    [
        conv(3, 4, 3, padding=2, dilation=2),
        conv(3, 4, 3, padding=1, padding_mode="reflect"),
        conv(3, 4, (1, 2), padding="same"),
        nn.Sequential(conv(3, 4, 1), nn.BatchNorm2d(4)),
    ],
    ids=str,
)
def test_fuse_stage_that_the_operator_does_not_have(layer):
    fused = check(two_branches(a=layer))
    assert "inception" not in operators(fused).values() and not fused.report().left_out


def test_fuse_ceil_mode_pool_is_no_stage():
    model = two_branches(lambda net, x: torch.cat([net.p(x), net.a(x)], 1), p=nn.MaxPool2d(1, ceil_mode=True))
    assert operators(check(model)) == {"p": "max_pool2d", "a": "conv2d"}


def test_fuse_write_in_place_beside_branches():
    def forward(net, x):
        x = x * 1
        first = net.a(x)
        x.mul_(2)
        return torch.cat([first, net.c(net.b(x))], 1)

    model = two_branches(forward).eval()
    fused = cnnfast.fuse(model)
    assert_close(fused(IMAGE), model(IMAGE))
    assert "inception" not in operators(fused).values()


def test_fuse_filter_takes_a_block_apart():
    fused = check(two_branches(), filter_fn=lambda name, module: name != "b")
    assert operators(fused) == {"a": "conv2d", "c": "conv2d"}
    fused = check(two_branches(), filter_fn=lambda name, module: name != "cat")
    assert "inception" not in operators(fused).values()


def test_fuse_block_with_hook_or_layer_called_twice():
    model = two_branches()
    model.c.register_forward_hook(lambda *args: None)
    assert operators(check(model)) == {"a": "conv2d", "b": "conv2d"}
    fused = check(two_branches(lambda net, x: torch.cat([net.a(x), net.b(x), net.b(x)], 1), c=nn.Identity()))
    assert operators(fused) == {"a": "conv2d"}


def test_fuse_block_follows_settings_and_layers():
    model = two_branches(
        lambda net, x: torch.cat([net.a(net.p(x)), net.c(net.b(x))], 1), p=nn.MaxPool2d(1, 1)
    ).eval()
    fused = cnnfast.fuse(model)
    changes = [
        lambda: setattr(fused.b, "padding", (2, 2)) or setattr(fused.b, "dilation", (2, 2)),
        lambda: setattr(fused.p, "ceil_mode", True),
        lambda: setattr(fused, "a", conv(3, 6, 3, padding=1, groups=3)),
        lambda: setattr(fused.a, "bias", None),
        lambda: setattr(fused, "b", conv(3, 2, 5, padding=2)),
    ]
    for change in changes:
        change()
        assert_close(fused(IMAGE), fused.unfuse()(IMAGE))


def test_fuse_branches_of_image_without_batch_dimension():
    model = Net(
        lambda net, x: torch.cat([net.a(x), net.b(x)], 1), a=conv(3, 4, 1), b=conv(3, 4, 3, padding=1)
    )
    fused = check(model, torch.randn(3, 6, 6))
    assert operators(fused) == {"a": "inception"}


# dense blocks


def dense_layer(channels, growth=4, kernel=3, activation=nn.ReLU, **options):
    return nn.Sequential(
        nn.BatchNorm2d(channels), activation(), conv(channels, growth, kernel, padding=kernel // 2, **options)
    )


def dense(*layers, join=lambda x, new: torch.cat([x, new], 1)):
    def forward(net, x):
        for layer in net.layers:
            x = join(x, layer(x))
        return x

    return Net(forward, layers=nn.ModuleList(layers))


def test_fuse_dense_block_is_one_call():
    fused = check(dense(dense_layer(3), dense_layer(7, bias=False), dense_layer(11)), strict=True)
    assert operators(fused) == {"layers.0.0": "dense_block"}
    assert fused.report()["layers.2.2"].runs_as == "with layers.0.0"


def test_fuse_dense_layers_of_different_form():
    fused = check(dense(dense_layer(3, kernel=5), dense_layer(7, kernel=1), dense_layer(11, 1)))
    assert set(operators(fused).values()) == {"dense_block"}
    fused = check(dense(dense_layer(3), dense_layer(7, activation=nn.Sigmoid)))
    assert operators(fused) == {"layers.0.0": "dense_block", "layers.1.0": "dense_block"}
    fused = check(dense(dense_layer(4, 4, groups=2)), torch.randn(2, 4, 5, 5))
    assert operators(fused) == {"layers.0.0": "bn_act_conv2d"}


def test_fuse_dense_layer_in_front_of_its_input_is_no_dense_block():
    fused = check(dense(dense_layer(3), dense_layer(7), join=lambda x, new: torch.cat([new, x], 1)))
    assert set(operators(fused).values()) == {"bn_act_conv2d"}


def test_fuse_dense_value_used_elsewhere_ends_the_block():
    def forward(net, x):
        x = torch.cat([x, net.a(x)], 1)
        y = torch.cat([x, net.b(x)], 1)
        return y[:, :7] * x

    fused = check(Net(forward, a=dense_layer(3), b=dense_layer(7)))
    assert operators(fused) == {"a.0": "dense_block", "b.0": "dense_block"}


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.layers[1][0].eval(),
        lambda net: [setattr(layer[0], "momentum", None) for layer in net.layers],
        lambda net: setattr(net.layers[0][0], "momentum", None),
        lambda net: setattr(net.layers[0][0], "eps", 0.1),
        lambda net: setattr(net.layers[1][2], "bias", None),
        lambda net: [setattr(net.layers[1][2], key, (2, 2)) for key in ("dilation", "padding")],
    ],
    ids=["frozen", "cumulative", "one cumulative", "eps", "bias", "dilation"],
)
def test_fuse_dense_block_follows_what_changes(change):
    model = liven(dense(dense_layer(3), dense_layer(7))).train()
    fused = cnnfast.fuse(copy.deepcopy(model))
    for net in (model, fused):
        change(net)
    for _ in range(2):
        assert_close(fused(IMAGE), model(IMAGE), 1e-4)
    for actual, wanted in zip(fused.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fuse_script_of_blocks_that_changed():
    """Every path of the functions that scripts compile."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = conv(3, 4, 1), conv(3, 2, 3, padding=1), conv(2, 5, 1)
            self.layers = nn.ModuleList([dense_layer(9), dense_layer(13)])

        def forward(self, x):
            x = torch.cat([F.relu(self.a(x)), torch.sigmoid(self.c(self.b(F.max_pool2d(x, 3, 1, 1))))], dim=1)
            for layer in self.layers:
                x = torch.cat([x, layer(x)], 1)
            return x

    fused = cnnfast.fuse(liven(Both())).train()
    fused.b.padding = fused.b.dilation = (2, 2)
    fused.layers[1][2].padding = fused.layers[1][2].dilation = (2, 2)
    fused.layers[0][0].momentum = None
    wanted = copy.deepcopy(fused)
    assert_close(torch.jit.script(fused)(IMAGE), wanted(IMAGE), 1e-5)


class WrittenAfter(nn.Module):
    """What a block gave is written in place; eager PyTorch's concatenation keeps nothing for its gradient."""

    def __init__(self, write):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.write = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 3, padding=1), write
        self.pool, self.last = nn.MaxPool2d(2), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        y = torch.cat([torch.relu(self.a(x)), self.b(x)], 1)
        return self.last(self.pool(self.write(y)))


@pytest.mark.parametrize(
    "write",
    [
        nn.ELU(inplace=True),
        nn.ReLU(inplace=True),
        lambda y: y.mul_(2),
        lambda y: F.hardswish(y, inplace=True),
        lambda y: y.view(-1).tanh_().view(y.shape),
    ],
    ids=["elu", "relu", "method", "function", "view"],
)
def test_fuse_blocks_whose_output_is_written_in_place(write):
    model = WrittenAfter(write)
    compare_steps(cnnfast.fuse(model), model, torch.randn(2, 4, 6, 6))
