"""Layers that must not be fused stay as they are, compute the right thing, and the report says why."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

import cnnfast

from .networks import NETWORKS, images, make


def fused_equal(model, x, **options):
    """The report, behind a check that the fused network computes what the model does."""
    wanted = model(x)
    fused = cnnfast.fuse(model, **options)
    # sums that end close to the middle between two values of bfloat16 may be rounded either way
    last_digit = torch.finfo(torch.bfloat16).eps if wanted.dtype == torch.bfloat16 else 0.0
    atol = 1e-5 * max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(fused(x), wanted, rtol=last_digit, atol=atol)
    return fused.report()


def chain(**layers):
    return nn.Sequential(OrderedDict(layers)).eval()


IMAGE = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(
    "kind", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
@pytest.mark.parametrize("layer", ["conv", "bn", "relu"])
def test_fuse_layer_with_hook(kind, layer):
    model = chain(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), relu=nn.ReLU())
    calls = []
    getattr(model.get_submodule(layer), kind)(lambda *args: calls.append(args[0]))
    fused = cnnfast.fuse(model)
    fused(IMAGE.clone().requires_grad_()).sum().backward()
    assert len(calls) == 1
    row = fused.report()[layer]
    assert row.status == "eager" and "hook" in row.reason


def test_fuse_block_with_hook_is_fused_inside():
    model = make("resnet").eval()
    shapes = []
    model.stage[0].register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    report = fused_equal(model, images("resnet"))
    assert len(shapes) == 2  # of the model and of the fused one
    assert report["stage.0.conv1"].status == "fused"
    assert not report.left_out


@pytest.mark.parametrize("layer", ["conv", "bn"])
def test_fuse_layer_called_twice(layer):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.bn = nn.BatchNorm2d(3)
            self.other = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.bn(self.conv(x))
            return self.conv(x) if layer == "conv" else self.bn(self.other(x))

    row = fused_equal(Net().eval(), IMAGE)[layer]
    assert row.status == "eager" and "called 2 times" in row.reason


def test_fuse_layer_in_two_places():
    shared = nn.Conv2d(3, 3, 1)
    row = fused_equal(nn.Sequential(shared, nn.ReLU(), shared), IMAGE)["0"]
    assert row.status == "eager" and "called 2 times" in row.reason


@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_fuse_weight_norm(norm):
    model = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.ReLU()).eval()
    row = fused_equal(model, IMAGE)["0"]
    assert row.status == "eager" and ("parametrized" in row.reason or "hooks" in row.reason)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Renamed(nn.Conv2d):
    """A subclass without a forward of its own."""


def test_fuse_subclass_with_own_forward():
    row = fused_equal(nn.Sequential(Doubled(3, 4, 3), nn.ReLU()), IMAGE)["0"]
    assert row.status == "eager" and "Doubled is a subclass of Conv2d with its own forward" in row.reason
    assert fused_equal(nn.Sequential(Renamed(3, 4, 3), nn.ReLU()), IMAGE)["0"].status == "fused"


def test_fuse_forward_replaced_on_instance():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model[0].forward = lambda x: F.conv2d(x, model[0].weight) * 3
    assert "replaced on the instance" in fused_equal(model, IMAGE)["0"].reason


def test_fuse_value_used_twice():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.bn = nn.BatchNorm2d(4)
            self.relu = nn.ReLU()

        def forward(self, x):
            y = self.conv(x)
            return self.relu(self.bn(y)) + y

    report = fused_equal(Net().eval(), IMAGE)
    assert report["conv"].runs_as == "cnnfast.ops.conv2d: conv"
    assert report["bn"].runs_as == "cnnfast.ops.batch_norm2d: bn + relu"


def test_fuse_value_returned_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.relu = nn.ReLU()

        def forward(self, x):
            y = self.conv(x)
            return y, self.relu(y)

    model = Net()
    fused = cnnfast.fuse(model)
    for actual, wanted in zip(fused(IMAGE), model(IMAGE), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
    assert fused(IMAGE)[0].min() < 0
    assert fused.report()["relu"].status == "eager"


def test_fuse_mixed_dtypes():
    model = nn.Sequential(nn.Conv2d(3, 4, 3).bfloat16(), nn.BatchNorm2d(4)).eval()
    report = fused_equal(model, IMAGE.bfloat16())
    assert report["0"].status == "fused" and "float32" in report["1"].reason


def test_fuse_pool_with_indices():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool2d(2, return_indices=True)

        def forward(self, x):
            values, indices = self.pool(x)
            return values + indices

    assert "indices" in fused_equal(Net(), IMAGE)["pool"].reason


def test_fuse_in_place_between_layers():
    """The convolution must see its input as it was when it was called."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            x = x * 1
            y = self.conv(x)
            x.relu_()
            return self.bn(y) + x

    report = fused_equal(Net().eval(), IMAGE)
    assert report["conv"].runs_as == "cnnfast.ops.conv2d: conv"
    assert report["bn"].runs_as == "cnnfast.ops.batch_norm2d: bn + add"


@pytest.mark.parametrize("add", ["iadd", "add_"])
def test_fuse_in_place_sum_into_the_other_operand(add):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = x * 1
            seen = x
            if add == "iadd":
                x += self.conv(x)
            else:
                x.add_(self.conv(x))
            return seen * 2

    fused_equal(Net(), IMAGE)


def test_fuse_in_place_sum_on_sizes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            n = x.size(0)
            m = n
            m += 1
            return self.conv(x).view(n, -1) * m

    fused_equal(Net(), IMAGE)


def test_fuse_scaled_sum_is_no_residual():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return torch.add(self.conv(x), x, alpha=2) + 1

    assert fused_equal(Net(), IMAGE)["conv"].runs_as == "cnnfast.ops.conv2d: conv"


def test_fuse_unknown_layers_say_so():
    model = nn.Sequential(nn.ConvTranspose2d(3, 3, 2), nn.Softplus(), nn.Conv2d(3, 3, 3), nn.CELU()).eval()
    report = fused_equal(model, IMAGE)
    assert report["0"].reason == "no kernel for ConvTranspose2d in this version"
    assert report["2"].runs_as == "cnnfast.ops.conv2d: 2"
    assert {row.name for row in report.left_out} == {"0", "1", "3"}


def test_fuse_filter_fn_chooses():
    asked = []

    def only_the_stage(name, module):
        asked.append(name)
        return name.startswith("stage")

    report = fused_equal(make("resnet").eval(), images("resnet"), filter_fn=only_the_stage)
    assert report["stem.0"].reason == "left out by filter_fn" and report["fc"].status == "eager"
    assert report["stage.0.conv1"].status == "fused" and "stem.0" in asked


@pytest.mark.parametrize("name", NETWORKS)
def test_fuse_filter_fn_none_leaves_bits(name):
    model = make(name).eval()
    x = images(name)
    assert torch.equal(cnnfast.fuse(model, filter_fn=lambda name, module: False)(x), model(x))


def test_fuse_sync_batch_norm_stays():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    ).eval()
    report = fused_equal(model, IMAGE)
    assert report["0"].status == "fused" and report["1"].status == "eager"


def test_fuse_modules_of_cnnfast_are_fused_already():
    model = nn.Sequential(
        cnnfast.nn.ConvBNReLU2d(3, 4, 3), cnnfast.nn.ResidualBlock(4), nn.Conv2d(4, 2, 1)
    ).eval()
    report = fused_equal(model, IMAGE)
    assert report["0"].status == report["1.conv1"].status == "already fused"
    assert report["2"].status == "fused" and report.coverage.layers == 1.0


@pytest.mark.parametrize("name", ["lenet", "residual_net"])
def test_fuse_networks_of_cnnfast(name):
    report = fused_equal(cnnfast.models.get_model(name), torch.randn(2, 1, 28, 28), strict=True)
    assert report.coverage.layers == 1.0
