"""Every network of the notes is a plan: no layer is left out, and the values are those of eager PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from fuse.plain_networks import HEAVY, PLAIN, SIZES_OF, make_ours, make_plain, plain_images
from torch import nn

import cnnfast
from cnnfast.plan.build import UnsupportedNetworkError, build
from cnnfast.plan.codec import decode, encode
from cnnfast.plan.nodes import Act, Op, fraction_word, word_fraction
from cnnfast.plan.shapes import infer
from cnnfast.plan.show import lines

from .plan_interpreter import run

NODES = {
    "lenet": {Op.RESHAPE_IMAGE: 1, Op.CONV2D: 2, Op.AVG_POOL2D: 2, Op.FLATTEN: 1, Op.LINEAR: 3},
    "alexnet": {Op.CONV2D: 5, Op.MAX_POOL2D: 3, Op.FLATTEN: 1, Op.LINEAR: 2},
    "alexnet_paper": {
        Op.CONV2D: 5,
        Op.LOCAL_RESPONSE_NORM: 2,
        Op.MAX_POOL2D: 3,
        Op.FLATTEN: 1,
        Op.LINEAR: 3,
    },
    "vgg11": {Op.CONV2D: 8, Op.MAX_POOL2D: 5, Op.FLATTEN: 1, Op.LINEAR: 3},
    "vgg11_small": {Op.CONV2D: 8, Op.MAX_POOL2D: 5, Op.FLATTEN: 1, Op.LINEAR: 3},
    "nin": {Op.CONV2D: 12, Op.MAX_POOL2D: 3, Op.GLOBAL_AVG_POOL: 1, Op.FLATTEN: 1},
    "nin_single_1x1": {Op.CONV2D: 8, Op.MAX_POOL2D: 3, Op.GLOBAL_AVG_POOL: 1, Op.FLATTEN: 1},
    "googlenet": {
        Op.CONV2D: 57,
        Op.MAX_POOL2D: 13,
        Op.CONCAT: 9,
        Op.GLOBAL_AVG_POOL: 1,
        Op.FLATTEN: 1,
        Op.LINEAR: 1,
    },
    "inception_net": {
        Op.CONV2D: 16,
        Op.MAX_POOL2D: 2,
        Op.AVG_POOL2D: 2,
        Op.CONCAT: 2,
        Op.FLATTEN: 1,
        Op.LINEAR: 1,
    },
    "residual_net": {Op.CONV2D: 6, Op.MAX_POOL2D: 2, Op.FLATTEN: 1, Op.LINEAR: 1},
    "resnet18": {Op.CONV2D: 20, Op.MAX_POOL2D: 1, Op.GLOBAL_AVG_POOL: 1, Op.FLATTEN: 1, Op.LINEAR: 1},
    "resnet18_preact": {
        Op.CONV2D: 20,
        Op.AFFINE: 9,
        Op.MAX_POOL2D: 1,
        Op.GLOBAL_AVG_POOL: 1,
        Op.FLATTEN: 1,
        Op.LINEAR: 1,
    },
    "densenet": {
        Op.CONV2D: 20,
        Op.AFFINE: 20,
        Op.CONCAT: 16,
        Op.AVG_POOL2D: 3,
        Op.MAX_POOL2D: 1,
        Op.GLOBAL_AVG_POOL: 1,
        Op.FLATTEN: 1,
        Op.LINEAR: 1,
    },
}


def assert_values(built, model, x, dtype=torch.float64):
    """The interpreted plan against the model, both in `dtype`, which the model is converted to."""
    with torch.no_grad():
        wanted = model.to(dtype).eval()(x.to(dtype))
    (actual,) = run(built.plan, built.weights, [x], dtype)
    largest = wanted.abs().max().item()
    torch.testing.assert_close(actual, wanted, rtol=0, atol=2e-5 * max(largest, 1e-3))
    assert infer(built.plan, tuple(x.shape))[built.plan.outputs[0]] == tuple(wanted.shape)


@pytest.mark.parametrize("name", PLAIN)
def test_plan_holds_plain_network(name):
    model = make_plain(name)
    built = build(model, (plain_images(name),))
    counts: dict[Op, int] = {}
    for node in built.plan.nodes[1:]:
        counts[node.op] = counts.get(node.op, 0) + 1
    assert counts == NODES[name]
    assert all(node.activation is not Act.NONE for node in built.plan.nodes if node.op is Op.AFFINE)
    dropped = {row.type for row in built.rows if row.status != "fused"}
    assert dropped <= {"Dropout", "Identity"}
    assert_values(built, model, plain_images(name), torch.float32 if name in HEAVY else torch.float64)


@pytest.mark.parametrize("name", PLAIN)
def test_plan_of_network_of_cnnfast(name):
    """The same nodes as the plain network's; blocks are taken apart, and every layer has its own."""
    model = make_ours(name)
    x = plain_images(name)
    built = build(model, (x,))
    counts: dict[Op, int] = {}
    for node in built.plan.nodes[1:]:
        counts[node.op] = counts.get(node.op, 0) + 1
    assert counts == NODES[name]
    assert {row.type for row in built.rows if row.status != "fused"} <= {"Dropout", "Identity"}
    assert_values(built, model, x, torch.float32 if name in HEAVY else torch.float64)


def test_plan_names_layers_inside_blocks():
    names = build(make_ours("densenet"), (plain_images("densenet"),)).names
    assert names[3:6] == ["dense1.layers.0.bn", "dense1.layers.0.conv", "dense1"]
    built = build(make_ours("googlenet"), (plain_images("googlenet"),))
    assert "inception3a.p2_2" in built.names and "inception3a" in built.names
    assert "inception3a.p1_1" in {row.name for row in built.rows}
    residual = build(make_ours("resnet18"), (plain_images("resnet18"),))
    assert "conv1.conv" not in {row.name for row in residual.rows}  # a part of conv1


def test_plan_of_network_whose_blocks_are_called_layer_by_layer():
    """A child with hooks has no place in a plan and is named; one with other settings is taken as it is."""
    model, x = (
        nn.Sequential(cnnfast.nn.InceptionA(3), cnnfast.nn.DenseBlock(2, 88, 4)),
        torch.randn(2, 3, 9, 8),
    )
    model[0].branch3x3_2.padding = model[0].branch3x3_2.dilation = (2, 2)
    model[1].layers[1].conv.padding = model[1].layers[1].conv.dilation = (2, 2)
    assert_values(build(model, (x,)), model, x)
    model.float()[0].branch1x1.register_forward_hook(lambda *args: None)
    with pytest.raises(UnsupportedNetworkError, match=r"0.branch1x1 \(Conv2d\): .*hooks"):
        build(model, (x,))


@pytest.mark.parametrize("name", SIZES_OF)
def test_plan_of_plain_network_at_another_size(name):
    """The plan was made for other images: it holds for every size the network allows."""
    model = make_plain(name)
    built = build(model, (plain_images(name),))
    small = (97, 99) if name.startswith("nin") else (33, 47)
    assert_values(built, model, torch.randn(1, 1, *small))


def test_plan_of_local_response_norm_by_hand():
    """The words that C++ reads: size, then alpha, beta and k as the words of their float64."""
    norm = nn.LocalResponseNorm(4, alpha=3e-4, beta=0.5, k=2)
    built = build(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), norm), (torch.randn(2, 3, 4, 5),))
    words = encode(built.plan, built.weights, checksum=lambda data: 7)
    bits = torch.tensor([3e-4, 0.5, 2.0], dtype=torch.float64).view(torch.int64).tolist()
    assert words.tolist()[-12:] == [12, 0, 0, 0, 1, 1, 4, 4, *bits, 2]
    assert decode(words) == built.plan
    assert lines(built.plan, built.names)[2].endswith(
        "local_response_norm size 4, alpha 0.0003, beta 0.5, k 2"
    )


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-4, 2.0, -1.5e300, 5e-324, float("inf")])
def test_plan_fraction_words(value):
    word = fraction_word(value)
    assert -(2**63) <= word < 2**63 and word_fraction(word) == value


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("channels", [1, 4, 9])
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_plan_of_local_response_norm_values(channels, size):
    for norm in (
        nn.LocalResponseNorm(size, alpha=0.5),
        Functional(lambda x: F.local_response_norm(x, size, 0.3, k=1.5)),
        Functional(lambda x: F.local_response_norm(x, size=size, beta=0.25)),
    ):
        model, x = nn.Sequential(nn.Conv2d(2, channels, 1), norm, nn.ReLU()), torch.randn(2, 2, 5, 4)
        built = build(model, (x,))
        assert [node.op for node in built.plan.nodes[2:]] == [Op.LOCAL_RESPONSE_NORM, Op.ACTIVATION]
        assert_values(built, model, x)


def test_plan_refuses_local_response_norm_of_features():
    with pytest.raises(UnsupportedNetworkError, match=r"\(N, C, H, W\)"):
        build(nn.Sequential(nn.LocalResponseNorm(2)), (torch.randn(2, 3, 4),))
    with pytest.raises(UnsupportedNetworkError, match="write it as a number"):
        computed = Functional(lambda x: F.local_response_norm(x, x.size(1)))
        build(nn.Sequential(computed), (torch.randn(2, 3, 4, 4),))


@pytest.mark.parametrize("pools", [1, 2])
def test_plan_relu_behind_max_pool_joins_the_convolution(pools):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), *(nn.MaxPool2d(3, 2, 1, ceil_mode=True) for _ in range(pools)), nn.ReLU()
    )
    x = torch.randn(2, 3, 15, 14)
    built = build(model, (x,))
    assert [(node.op, node.activation) for node in built.plan.nodes[1:3]] == [
        (Op.CONV2D, Act.RELU),
        (Op.MAX_POOL2D, Act.NONE),
    ]
    assert len(built.plan.nodes) == 2 + pools and built.rows[-1].status == "fused"
    assert_values(built, model, x)


def test_plan_activation_behind_pool_stays_where_it_must():
    """Sigmoid rounds, averages are not maxima, and a value that others read stays what it is."""

    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(3, 1, 1)

        def forward(self, x):
            y = self.conv(x)
            return torch.relu(self.pool(y)) + y

    x = torch.randn(2, 3, 8, 8)
    for model in (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Sigmoid()),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.ReLU()),
        Read(),
    ):
        built = build(model, (x,))
        assert Op.ACTIVATION in [node.op for node in built.plan.nodes]
        assert_values(built, model, x)
