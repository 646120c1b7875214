"""Batch norms in front of convolutions, behind linear layers and alone; response norms; global pooling."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast
from cnnfast import _ext

from .networks import liven
from .support import IMAGE, Net, check, operators
from .test_fuse_values import assert_close


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.Sigmoid(), nn.Identity()], ids=str
)
@pytest.mark.parametrize(
    "options", [{}, {"padding": 1, "stride": 2}, {"padding": "same", "bias": False}], ids=str
)
def test_fuse_batch_norm_in_front_of_convolution(activation, options):
    layers = [nn.BatchNorm2d(3), activation, nn.Conv2d(3, 4, 3, **options)]
    fused = check(
        nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity))), strict=True
    )
    assert operators(fused) == {"0": "bn_act_conv2d"}


@pytest.mark.parametrize(
    "shape", [(2, 4, 8, 9), (4, 1, 1), (2, 4, 1, 1), (1, 4, 8, 9), (8, 9), (1,)], ids=str
)
def test_fuse_sum_behind_preactivation_of_any_shape(shape):
    model = Net(
        lambda net, x: net.conv(F.relu(net.bn(x))) + net.other,
        bn=nn.BatchNorm2d(3),
        conv=nn.Conv2d(3, 4, 3, padding=1),
    )
    model.other = nn.Parameter(torch.randn(shape))
    assert check(model).report()["bn"].runs_as == "cnnfast.ops.bn_act_conv2d: bn + relu + conv + add"


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (3, 1, 1), (8, 9), (1,)], ids=str)
def test_fuse_sum_behind_batch_norm_of_any_shape(shape):
    model = Net(lambda net, x: torch.sigmoid(net.other + net.bn(x)), bn=nn.BatchNorm2d(3))
    model.other = nn.Parameter(torch.randn(shape))
    assert check(model).report()["bn"].runs_as == "cnnfast.ops.batch_norm2d: bn + add + sigmoid"


def test_fuse_activation_that_two_convolutions_read():
    """As in the first block of a stage: computed once."""

    def forward(net, x):
        y = F.relu(net.bn(x))
        return net.a(y) + net.b(y)

    fused = check(Net(forward, bn=nn.BatchNorm2d(3), a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 2, 3, padding=1)))
    assert fused.report()["bn"].runs_as == "cnnfast.ops.batch_norm2d: bn + relu"


def test_fuse_convolution_that_pads_with_an_image_is_not_joined_to_the_norm():
    layers = [nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")]
    assert operators(check(nn.Sequential(*layers))) == {"0": "batch_norm2d", "2": "conv2d"}


def test_fuse_convolution_left_out_stays_behind_the_norm():
    layers = [nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)]
    fused = check(nn.Sequential(*layers), filter_fn=lambda name, module: name != "2")
    assert operators(fused) == {"0": "batch_norm2d"} and fused.report()["2"].status == "eager"


@pytest.mark.parametrize(
    "options", [{"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.3}], ids=str
)
@pytest.mark.parametrize("kind", ["alone", "front", "linear"])
def test_fuse_options_of_batch_norms(kind, options):
    if kind == "linear":
        model, x = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, **options)), torch.randn(6, 5)
    else:
        model, x = nn.Sequential(nn.BatchNorm2d(3, **options), nn.ReLU()), IMAGE
    if kind == "front":
        model.append(nn.Conv2d(3, 2, 3))
    model = model.train()
    fused = cnnfast.fuse(copy.deepcopy(model), strict=True)
    for mode in (True, True, False, True):
        assert_close(fused.train(mode)(x), model.train(mode)(x), 1e-4)
    for actual, wanted in zip(fused.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 5)])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Sigmoid(), nn.Identity()], ids=str)
def test_fuse_linear_batch_norm(activation, shape):
    model = nn.Sequential(nn.Linear(5, 3, bias=False), nn.BatchNorm1d(3), activation)
    fused = check(model, torch.randn(shape))
    assert operators(fused) == {"0": "conv2d_bn_act"}


def test_fuse_batch_norm_of_features_alone_stays():
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.BatchNorm1d(3))
    reason = check(model, torch.randn(6, 5)).report()["2"].reason
    assert reason == "it cannot be joined to '1' in front of it"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_fuse_norms_in_other_dtypes(dtype):
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Identity(),
        nn.BatchNorm2d(4), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        nn.BatchNorm1d(3),
    )  # fmt: skip
    if dtype is torch.float64:  # eager PyTorch has none for bfloat16
        model[4] = nn.LocalResponseNorm(3)
    model = liven(model).to(dtype)
    fused = cnnfast.fuse(copy.deepcopy(model))
    x = IMAGE.to(dtype)
    for mode in (True, False):
        actual, wanted = fused.train(mode)(x), model.train(mode)(x)
        assert actual.dtype == wanted.dtype == dtype
        if dtype is torch.float64 or not mode:  # two images in bfloat16 have no statistics to speak of
            assert_close(actual, wanted, 1e-9 if dtype is torch.float64 else 0.1)


def test_fuse_batch_norm_kept_in_float32():
    """The usual mixture: images in bfloat16, batch norm in float32."""
    model = nn.Sequential(nn.MaxPool2d(2), liven(nn.BatchNorm2d(3)), nn.ReLU())
    fused = cnnfast.fuse(copy.deepcopy(model))
    x = IMAGE.bfloat16()
    for mode in (True, False):
        actual, wanted = fused.train(mode)(x), model.train(mode)(x)
        assert actual.dtype == wanted.dtype == torch.bfloat16
        assert_close(actual.float(), wanted.float(), 0.02)


def test_fuse_norms_under_autocast():
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        *(nn.LocalResponseNorm(3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
    )
    if not _ext.AVAILABLE:  # the reference keeps the type that it is given; PyTorch's own gives float32
        model[5] = nn.Identity()
    model = liven(model).eval()
    fused = cnnfast.fuse(model)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        actual, wanted = fused(IMAGE), model(IMAGE)
    assert actual.dtype == wanted.dtype
    assert_close(actual.float(), wanted.float(), 0.05)


# local response normalisation


@pytest.mark.parametrize(
    "norm",
    [
        nn.LocalResponseNorm(2),
        nn.LocalResponseNorm(5, alpha=0.3, beta=0.5, k=2),
        Net(lambda net, x: F.local_response_norm(x, 3, 0.2, k=2)),
        Net(lambda net, x: F.local_response_norm(x, size=2)),
    ],
)
def test_fuse_local_response_norm(norm):
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), norm)
    assert list(operators(check(model, strict=True)).values()) == ["conv2d", "local_response_norm"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_fuse_local_response_norm_follows_settings_and_shapes():
    shared = nn.LocalResponseNorm(3, alpha=0.5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), shared, nn.ReLU(), shared)
    fused = check(model)
    assert operators(fused) == {"0": "conv2d", "1": "local_response_norm"}
    fused[1].size, fused[1].k = 2, 3.0
    assert_close(fused(IMAGE), fused.unfuse()(IMAGE))
    assert_close(torch.jit.script(fused)(IMAGE), fused(IMAGE))
    check(nn.Sequential(nn.LocalResponseNorm(2), nn.Linear(4, 3)), torch.randn(2, 3, 4))


# global pooling

POOLS = {
    "module": nn.AdaptiveAvgPool2d(1),
    "pair": nn.AdaptiveAvgPool2d((1, 1)),
    "function": Net(lambda net, x: F.adaptive_avg_pool2d(x, (1, 1))),
    "by keyword": Net(lambda net, x: F.adaptive_avg_pool2d(x, output_size=1)),
    "window of the image": Net(lambda net, x: F.avg_pool2d(x, x.size()[2:])),
    "window by keyword": Net(lambda net, x: F.avg_pool2d(x, kernel_size=x.shape[2:])),
    "mean": Net(lambda net, x: x.mean((2, 3))),
    "mean, kept": Net(lambda net, x: x.mean(dim=[-1, -2], keepdim=True)),
    "torch.mean": Net(lambda net, x: torch.mean(x, [2, 3], True)),
}


@pytest.mark.parametrize("how", POOLS)
def test_fuse_global_pooling(how):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), POOLS[how])
    fused = check(model, strict=True)
    assert list(operators(fused).values()) == ["conv2d", "global_avg_pool2d"]


@pytest.mark.parametrize("how", ["module", "pair", "function", "mean, kept"])
def test_fuse_global_pooling_without_batch_dimension(how):
    check(nn.Sequential(nn.Conv2d(3, 4, 3), POOLS[how]), torch.randn(3, 8, 7))


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: F.adaptive_avg_pool2d(net.conv(x), 2),
        lambda net, x: net.conv(x).mean((1, 2)),
        lambda net, x: net.conv(x).mean(),
        lambda net, x: net.conv(x).mean((2, 3), dtype=torch.float32),
        lambda net, x: net.conv(x).mean(axis=(2, 3)),
        lambda net, x: F.avg_pool2d(net.conv(x), x.size()[2:]) if x is None else net.conv(x).mean(-1),
    ],
)
def test_fuse_other_means_stay(function):
    fused = check(Net(function, conv=nn.Conv2d(3, 4, 3)))
    assert list(operators(fused).values()) == ["conv2d"]


def test_fuse_output_size_changed_later():
    fused = cnnfast.fuse(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d((1, 1)), nn.AdaptiveAvgPool2d(1))
    )
    fused[1].output_size = (3, 2)
    assert_close(fused(IMAGE), fused.unfuse()(IMAGE))
    with pytest.raises(RuntimeError, match="fuse"):
        fused[2] = nn.AdaptiveAvgPool2d((1, 1))  # another form


# a ReLU behind a max pool


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: F.relu(net.pool(net.conv(x))),
        lambda net, x: net.relu(net.pool(net.conv(x))),
        lambda net, x: torch.relu_(F.max_pool2d(net.conv(x), 2)),
        lambda net, x: net.pool(net.conv(x)).relu(),
    ],
)
def test_fuse_relu_behind_max_pool(function):
    layers = {
        "conv": nn.Conv2d(3, 4, 3),
        "pool": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        "relu": nn.ReLU(True),
    }
    fused = check(Net(function, **layers))
    assert " + " in fused.report()["conv"].runs_as
    batch_norm = check(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.ReLU()))
    assert batch_norm.report()["0"].runs_as == "cnnfast.ops.conv2d_bn_act: 0 + 1 + 3"


def test_fuse_relu_behind_max_pool_stays_where_it_must():
    def used_twice(net, x):
        y = net.pool(net.conv(x))
        return F.relu(y) + y

    layers = {"conv": nn.Conv2d(3, 4, 3), "pool": nn.MaxPool2d(2), "relu": nn.ReLU()}
    alone = "cnnfast.ops.conv2d: conv; while training in bfloat16 one cnnfast.ops.inception: conv + pool"
    assert check(Net(used_twice, **layers)).report()["conv"].runs_as == alone
    model = Net(lambda net, x: net.relu(net.pool(net.conv(x))), **copy.deepcopy(layers))
    left_out = check(model, filter_fn=lambda name, module: name != "pool")
    assert left_out.report()["conv"].runs_as == "cnnfast.ops.conv2d: conv"
    model.pool.register_forward_hook(lambda *args: None)
    assert check(model).report()["conv"].runs_as == "cnnfast.ops.conv2d: conv"
    average = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.ReLU())
    assert check(average).report()["0"].runs_as.startswith("cnnfast.ops.conv2d: 0; while training")
