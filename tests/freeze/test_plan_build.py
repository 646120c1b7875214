"""A plan encodes the network: interpreted by test code in float64, it gives what eager PyTorch gives."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fuse.networks import NETWORKS, images, liven, make
from torch import nn
from torch.nn.utils import parametrizations

import cnnfast
from cnnfast.plan.build import build
from cnnfast.plan.nodes import Act, Op
from cnnfast.plan.shapes import infer, multiply_adds

from .plan_interpreter import run


def truth(model, x):
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(x.double())


def check(model, x, *others):
    """The built plan, behind a check of its values; others: more inputs, of other sizes."""
    built = build(model, (x,))
    for image in (x, *others):
        wanted = truth(model, image)
        (actual,) = run(built.plan, built.weights, [image])
        assert actual.shape == wanted.shape
        # constants are rounded to float32 once, the rest is exact
        largest = wanted.abs().max().item() if wanted.numel() else 0.0
        torch.testing.assert_close(actual, wanted, rtol=0, atol=3e-6 * max(1.0, largest))
        shapes = infer(built.plan, tuple(image.shape))
        assert shapes[built.plan.outputs[0]] == tuple(wanted.shape)
    return built.plan


def ops(plan):
    return [node.op for node in plan.nodes]


@pytest.mark.parametrize("name", NETWORKS)
def test_plan_values(name):
    x = images(name)
    check(make(name).train(), x, images(name, 1), images(name, 8))
    if name in ("lenet", "resnet", "preactivation"):  # x.view(0, -1) is an error in eager PyTorch
        check(make(name), x, images(name, 0))


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (33, 12)])
@pytest.mark.parametrize("name", ["resnet", "branches", "preactivation"])
def test_plan_values_at_other_image_sizes(name, size):
    x = images(name)
    check(make(name), x, torch.randn(2, x.shape[1], *size))


@pytest.mark.parametrize("name", ["lenet", "residual_net"])
def test_plan_of_networks_of_cnnfast(name):
    x = torch.randn(3, 1, 28, 28)
    plan = check(cnnfast.models.get_model(name), x, x[:1])
    assert len(plan.nodes) == {"lenet": 10, "residual_net": 11}[name]


def test_plan_of_lenet_takes_flat_images():
    check(cnnfast.models.lenet(), torch.randn(2, 1, 28, 28), torch.randn(4, 784), torch.randn(3, 28, 28))


def test_plan_of_fused_network_is_that_of_the_original():
    model, x = make("resnet"), images("resnet")
    fused = build(cnnfast.fuse(model), (x,))
    plain = build(model, (x,))
    assert fused.plan == plain.plan and torch.equal(fused.weights, plain.weights)


def test_plan_leaves_model_untouched():
    model = make("resnet").train()
    before = copy.deepcopy(model.state_dict())
    build(model, (images("resnet"),))
    assert model.training and all(m.training for m in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_plan_folds_resnet():
    plan = build(make("resnet"), (images("resnet"),)).plan
    assert set(ops(plan)) == {Op.INPUT, Op.CONV2D, Op.MAX_POOL2D, Op.GLOBAL_AVG_POOL, Op.FLATTEN, Op.LINEAR}
    convs = [node for node in plan.nodes if node.op is Op.CONV2D]
    assert [len(node.inputs) for node in convs] == [1, 1, 2, 1, 1, 2]
    relus = [node.activation is Act.RELU for node in convs]
    assert relus == [True, True, True, True, False, True]


def test_plan_of_preactivation_keeps_batch_norm_as_affine():
    plan = build(make("preactivation"), (images("preactivation"),)).plan
    # the second batch norm stands behind a convolution and is folded
    assert [(node.op, node.activation) for node in plan.nodes[1:3]] == [
        (Op.AFFINE, Act.RELU),
        (Op.CONV2D, Act.RELU),
    ]


class Both(nn.Module):
    """a(x) and b(x) joined by a function."""

    def __init__(self, join, a=None, b=None):
        super().__init__()
        self.a = a or nn.Conv2d(3, 4, 3, padding=1)
        self.b = b or nn.Conv2d(3, 4, 1)
        self.join = join

    def forward(self, x):
        return self.join(self.a(x), self.b(x))


IMAGE = torch.randn(2, 3, 7, 6)


@pytest.mark.parametrize(
    ("join", "expected"),
    [
        (lambda a, b: a + b, [Op.INPUT, Op.CONV2D, Op.CONV2D]),
        (lambda a, b: torch.relu(b + a) + b, [Op.INPUT, Op.CONV2D, Op.CONV2D, Op.ADD]),
        (lambda a, b: a + a, [Op.INPUT, Op.CONV2D, Op.ADD]),
        (lambda a, b: a.relu() + b.sigmoid(), [Op.INPUT, Op.CONV2D, Op.CONV2D, Op.ADD]),
        (lambda a, b: torch.relu(a) + torch.sigmoid(a) + b, None),
        (lambda a, b: torch.sigmoid(torch.relu(a + b)), [Op.INPUT, Op.CONV2D, Op.CONV2D, Op.ACTIVATION]),
        (lambda a, b: torch.cat([a, b, a], 1).relu(), None),
        (lambda a, b: torch.cat((a, torch.cat((b, b), dim=1)), dim=-3), None),
        (lambda a, b: F.relu(a.add_(b)), [Op.INPUT, Op.CONV2D, Op.CONV2D]),
        (lambda a, b: (F.relu(a, inplace=True) + a) + b, None),
        (lambda a, b: (a.relu_(), a.sigmoid() + b)[1], None),
        (lambda a, b: a.clone().relu_() + a + b, None),
    ],
)
def test_plan_of_joined_branches(join, expected):
    """In-place operations change what later readers see; clone() must not be taken for nothing then."""
    plan = check(Both(join), IMAGE)
    assert expected is None or ops(plan) == expected


def test_plan_drops_unused_branch():
    plan = check(Both(lambda a, b: a.relu()), IMAGE)
    assert ops(plan) == [Op.INPUT, Op.CONV2D]


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"padding": "same"}, {"stride": (1, 2), "dilation": (2, 1)}]
)
@pytest.mark.parametrize("kernel", [1, 3, (2, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_plan_of_convolutions(options, kernel, bias):
    model = nn.Sequential(
        nn.Conv2d(4, 6, kernel, groups=2, bias=bias, **options), nn.BatchNorm2d(6), nn.Sigmoid()
    )
    assert len(check(liven(model), torch.randn(2, 4, 9, 8)).nodes) == 2


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d((3, 2), stride=(2, 1), padding=1, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2, stride=1),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d((2, 3), ceil_mode=True, count_include_pad=False, padding=1),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AdaptiveAvgPool2d(1),
        cnnfast.nn.GlobalAvgPool2d(),
        cnnfast.nn.MaxPool2d(3, 2),
        cnnfast.nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    ],
    ids=str,
)
def test_plan_of_pools(pool):
    for size in ((7, 6), (8, 9), (5, 5)):
        check(pool, torch.randn(2, 3, 7, 6), torch.randn(1, 3, *size))


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


FLATTENINGS = {
    "flatten": lambda x: torch.flatten(x, 1),
    "method": lambda x: x.flatten(1),
    "module": nn.Flatten(),
    "view": lambda x: x.view(x.size(0), -1),
    "shape": lambda x: x.reshape(x.shape[0], -1),
    "size_index": lambda x: x.view(x.size()[0], -1),
    "numbers": lambda x: x.view(-1, 4 * 5 * 6),
    "all_numbers": lambda x: x.view(x.size(0), 120),
    "list": lambda x: torch.reshape(x, [x.shape[0], 120]),
    "unpacked": lambda x: _unpacked(x),
}


def _unpacked(x):
    n, c, h, w = x.size()
    return x.view(n, -1)


@pytest.mark.parametrize("how", FLATTENINGS)
def test_plan_of_flattening(how):
    flatten = FLATTENINGS[how]
    model = nn.Sequential(
        nn.Conv2d(3, 4, 2),
        flatten if isinstance(flatten, nn.Module) else Lambda(flatten),
        nn.Linear(120, 7, bias=False),
        nn.BatchNorm1d(7),
        nn.ReLU(),
    )
    plan = check(liven(model), torch.randn(3, 3, 6, 7), torch.randn(1, 3, 6, 7))
    assert ops(plan) == [Op.INPUT, Op.CONV2D, Op.FLATTEN, Op.LINEAR]


@pytest.mark.parametrize(
    ("reshape", "shape"),
    [
        (lambda x: x.view(-1, 2, 4, 3), (5, 24)),
        (lambda x: x.view(-1, 2, 4, 3), (5, 2, 4, 3)),
        (lambda x: x.reshape(x.size(0), 2, 4, 3), (5, 24)),
        (nn.Unflatten(1, (2, 4, 3)), (5, 24)),
        (cnnfast.nn.ReshapeImage(2, 4, 3), (5, 24)),
    ],
)
def test_plan_of_image_reshape(reshape, shape):
    module = reshape if isinstance(reshape, nn.Module) else Lambda(reshape)
    plan = check(nn.Sequential(module, nn.Conv2d(2, 3, 2)), torch.randn(shape))
    assert ops(plan) == [Op.INPUT, Op.RESHAPE_IMAGE, Op.CONV2D]


def test_plan_of_global_pooling_forms():
    for function in (
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
        lambda x: F.avg_pool2d(x, x.shape[2:]),
        lambda x: F.avg_pool2d(x, kernel_size=x.size()[2:]),
        lambda x: x.mean([2, 3], keepdim=True),
        lambda x: torch.mean(x, dim=(-1, -2), keepdim=True),
    ):
        model = nn.Sequential(nn.Conv2d(3, 4, 2), Lambda(function))
        assert ops(check(model, IMAGE, torch.randn(1, 3, 4, 9)))[-1] is Op.GLOBAL_AVG_POOL


def test_plan_drops_what_does_nothing():
    model = nn.Sequential(
        nn.Identity(),
        nn.Conv2d(3, 4, 2),
        nn.Dropout2d(),
        Lambda(lambda x: x.contiguous()),
        nn.ReLU(inplace=True),
    )
    assert ops(check(model, IMAGE)) == [Op.INPUT, Op.CONV2D]


def test_plan_of_dropout_by_function():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            if self.training:
                x = x * 2
            return self.fc(F.dropout(x, 0.3, self.training))

    assert ops(check(Net().train(), torch.randn(5, 4))) == [Op.INPUT, Op.LINEAR]


def test_plan_of_functions_with_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(4))
            self.register_buffer("mean", torch.randn(4))
            self.register_buffer("var", torch.rand(4) + 0.5)

        def forward(self, x):
            x = F.conv2d(x, self.w, self.b, padding=1)
            return F.relu(F.batch_norm(x, self.mean, self.var, training=self.training))

    assert ops(check(Net(), IMAGE)) == [Op.INPUT, Op.CONV2D]


def test_plan_takes_the_value_of_parametrized_weights():
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU()).eval()
    built = build(model, (IMAGE,))
    (actual,) = run(built.plan, built.weights, [IMAGE], torch.float32)
    torch.testing.assert_close(actual, model(IMAGE), rtol=0, atol=1e-5)


def test_plan_of_a_layer_called_twice():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    plan = check(nn.Sequential(shared, nn.ReLU(), shared, nn.BatchNorm2d(3), shared), IMAGE)
    assert ops(plan) == [Op.INPUT, Op.CONV2D, Op.CONV2D, Op.CONV2D]


def test_plan_batch_norm_behind_a_residual_is_not_folded_into_it():
    model = nn.Sequential(Both(lambda a, b: a + b), nn.BatchNorm2d(4), nn.ReLU())
    assert ops(check(liven(model), IMAGE))[-1] is Op.AFFINE


def test_plan_does_not_fold_over_an_output():
    """A value that the network returns must stay what it is though another step reads it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()

        def forward(self, x):
            y = self.conv(x)
            self.relu(y)
            return y

    assert check(Net(), IMAGE).nodes[-1].activation is Act.NONE


def test_plan_multiply_adds():
    built = build(make("lenet"), (images("lenet"),))
    shapes = infer(built.plan, (2, 1, 28, 28))
    total = sum(multiply_adds(node, shape) for node, shape in zip(built.plan.nodes, shapes, strict=True))
    assert total == 2 * (28 * 28 * 6 * 25 + 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10)


def test_plan_rows_say_where_layers_went():
    rows = {row.name: row for row in build(make("resnet"), (images("resnet"),)).rows}
    assert rows["stem.1"].runs_as == rows["stem.0"].runs_as == "node 1: conv2d"
    assert rows["pool"].runs_as.endswith("global_avg_pool")
    dropped = build(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), (torch.randn(1, 3),)).rows[1]
    assert dropped.status == "no work" and not dropped.runs_as


@pytest.mark.parametrize(
    ("pool", "swaps"),
    [
        (nn.AvgPool2d(2, 2), True),
        (nn.AvgPool2d(3, 2), True),
        (nn.AdaptiveAvgPool2d(1), True),
        (nn.AvgPool2d(3, 1), False),
        (nn.AvgPool2d(3, 2, 1), False),
        (nn.AvgPool2d(2, 2, ceil_mode=True), False),
        (nn.AvgPool2d(2, 2, divisor_override=3), False),
        (nn.MaxPool2d(2, 2), False),
    ],
    ids=str,
)
def test_plan_takes_means_before_a_1x1_convolution(pool, swaps):
    model = nn.Sequential(nn.Conv2d(6, 4, 1), pool, nn.BatchNorm2d(4), nn.ReLU())
    plan = check(liven(model), torch.randn(2, 6, 9, 8), torch.randn(3, 6, 13, 7))
    convs = [i for i, node in enumerate(plan.nodes) if node.op is Op.CONV2D]
    assert convs == [2 if swaps else 1]
    if swaps:
        assert len(plan.nodes) == 3 and plan.nodes[2].activation is Act.RELU


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 1, 2), nn.Conv2d(6, 4, 1, padding=1)],
    ids=["kernel", "stride", "padding"],
)
def test_plan_leaves_means_behind_other_convolutions(conv):
    plan = check(liven(nn.Sequential(conv, nn.AvgPool2d(2, 2))), torch.randn(2, 6, 9, 8))
    assert [node.op for node in plan.nodes] == [Op.INPUT, Op.CONV2D, Op.AVG_POOL2D]
