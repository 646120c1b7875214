"""What users' networks have beside torch.nn's layers: functions, other packages' norms, several results."""

import copy
import importlib.util
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast
from cnnfast.fuse.check import relative_error

from .networks import liven
from .support import IMAGE, check, compare_steps, operators

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")


class Functional(nn.Module):
    """A network that keeps its own parameters and calls functions."""

    def __init__(self, momentum=0.1):
        super().__init__()
        self.momentum = momentum
        self.w1, self.b1 = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.3), nn.Parameter(torch.randn(8))
        self.w2 = nn.Parameter(torch.randn(8, 4, 3, 3) * 0.2)
        self.gamma, self.beta = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))
        self.head = nn.Parameter(torch.randn(5, 16) * 0.3)

    def forward(self, x):
        y = F.relu(F.conv2d(x, self.w1, self.b1, padding=1))
        z = F.conv2d(y, self.w2, None, 1, (1, 1), 1, 2)
        z = F.batch_norm(z, self.mean, self.var, self.gamma, self.beta, self.training, self.momentum)
        z += y
        z = torch.cat([F.relu(z), y], 1)
        return F.relu(F.linear(z.mean((2, 3)), self.head))


def test_fuse_functions_of_parameters():
    torch.manual_seed(0)
    fused = check(Functional())
    rows = operators(fused)
    assert rows["conv2d"] == "conv2d" and rows["conv2d_1"] == "conv2d_bn_act" and rows["linear"] == "linear"
    report = cnnfast.fuse(Functional(), IMAGE, verify=True).report()
    assert report.coverage.multiply_adds == 1.0
    assert set(fused.state_dict()) == set(Functional().state_dict())


def test_functions_follow_their_parameters():
    torch.manual_seed(0)
    model = Functional().eval()
    fused = cnnfast.fuse(model)
    with torch.no_grad():
        model.w1.mul_(2)
        model.mean.add_(0.5)
    torch.testing.assert_close(fused(IMAGE), model(IMAGE), rtol=1e-4, atol=1e-4)
    assert torch.equal(fused.unfuse()(IMAGE), model(IMAGE))


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: F.conv2d(x, s.w * 2),
        lambda s, x: F.conv2d(x, s.w, padding="same"),
        lambda s, x: F.batch_norm(x, None, None, training=True),
        lambda s, x: F.conv2d(x, s.w, stride=x.shape[2] // 4),
    ],
)
def test_functions_with_other_arguments_stay(function):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3, 3, 3))

        def forward(self, x):
            return function(self, x)

    assert not operators(check(Net()))


def test_functions_with_named_arguments():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3, 3, 3))

        def forward(self, x):
            return F.relu(input=F.conv2d(weight=self.w, input=x, padding=1))

    assert operators(check(Net())) == {"conv2d": "conv2d"}


def test_frozen_batch_norm():
    norm = torchvision.ops.misc.FrozenBatchNorm2d
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), norm(6), nn.ReLU(), norm(6), nn.Conv2d(6, 4, 1))
    torch.manual_seed(0)
    for module in (model[1], model[3]):
        for tensor in module.buffers():
            tensor.uniform_(0.5, 2)
    fused = check(model)
    assert operators(fused) == {"0": "conv2d_bn_act", "3": "bn_act_conv2d"}
    assert {row.status for row in fused.report().rows} == {"fused"}
    before = copy.deepcopy(fused.state_dict())
    fused.train()(IMAGE)
    assert all(torch.equal(value, before[key]) for key, value in fused.state_dict().items())
    frozen = cnnfast.freeze(model.eval(), IMAGE, strict=True)
    assert relative_error(frozen(IMAGE), model(IMAGE)) < 1e-5


def test_in_place_layers_behind_fused_ones_train():
    """Their gradients need what the fused call gave only where it ends with an activation."""
    layers = [nn.Conv2d(3, 6, 3), nn.Hardtanh(-0.5, 0.5, inplace=True), nn.BatchNorm2d(6)]
    layers += [nn.Softplus(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.CELU(inplace=True)]
    model = liven(
        nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 42, 5), nn.RReLU(0.3, 0.3, inplace=True))
    )
    compare_steps(cnnfast.fuse(copy.deepcopy(model)).train(), model.train(), IMAGE)


def test_auxiliary_outputs_in_training():
    torch.manual_seed(0)
    model = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    fused, x = cnnfast.fuse(copy.deepcopy(model)), torch.randn(3, 3, 64, 64)
    wanted, got = model.train()(x), fused.train()(x)
    assert type(got) is type(wanted) and got._fields == ("logits", "aux_logits2", "aux_logits1")
    for actual, right in zip(got, wanted, strict=True):
        assert relative_error(actual, right) < 1e-3
    assert isinstance(fused.eval()(x), torch.Tensor)
    assert relative_error(fused(x), model.eval()(x)) < 1e-3


def name_of(call):
    """Without its address, which is another one in every process that collects the tests."""
    if isinstance(call, partial):
        given = [*map(str, call.args), *(f"{name}={value}" for name, value in call.keywords.items())]
        return "_".join([call.func.__name__, *given])
    return call.__name__


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        (nn.ReLU6, F.relu6), (nn.Hardsigmoid, F.hardsigmoid), (nn.Hardswish, F.hardswish), (nn.SiLU, F.silu),
        (nn.Mish, F.mish), (nn.Tanh, torch.tanh), (nn.GELU, F.gelu),
        (partial(nn.GELU, "tanh"), partial(F.gelu, approximate="tanh")), (nn.LeakyReLU, F.leaky_relu),
        (partial(nn.LeakyReLU, 0.2), partial(F.leaky_relu, negative_slope=0.2)), (nn.ELU, F.elu),
        (partial(nn.Hardtanh, -0.5, 0.75), partial(F.hardtanh, min_val=-0.5, max_val=0.75)),
    ],
    ids=name_of,
)  # fmt: skip
def test_activations(activation, function):
    layers = [nn.Conv2d(3, 6, 3), activation(), nn.BatchNorm2d(6), activation(), nn.Conv2d(6, 6, 1)]
    layers += [nn.BatchNorm2d(6), activation(), nn.Flatten(), nn.Linear(252, 7), activation()]
    fused = check(nn.Sequential(*layers))
    kinds = {"0": "conv2d", "2": "batch_norm2d", "4": "conv2d_bn_act", "8": "linear"}
    assert operators(fused) == kinds and not fused.report().left_out

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return torch.cat([function(self.a(x)), function(self.b(x) + self.a.bias.view(1, -1, 1, 1))], 1)

    assert operators(check(Called())) == {"a": "conv2d", "b": "conv2d"}


def test_stochastic_depth_and_dropout():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.drop = torchvision.ops.StochasticDepth(0.5, "row")
            self.dropout = nn.Dropout(0.0, inplace=True)  # draws depend on the layout

        def forward(self, x):
            return self.dropout(self.drop(self.conv(x)) + x)

    model = Block()
    fused = cnnfast.fuse(model)
    for mode in (True, False):
        results = []
        for network in (model.train(mode), fused.train(mode)):
            torch.manual_seed(3)
            results.append(network(IMAGE))
        torch.testing.assert_close(*results)
    assert operators(fused) == {"conv": "conv2d"}
    assert not cnnfast.freeze(model, IMAGE, strict=True).training


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed: '.[zoo]'")
class TestTimm:
    def layer(self, **options):
        from timm.layers import BatchNormAct2d

        return BatchNormAct2d(6, **options)

    def test_batch_norm_with_activation(self):
        model = nn.Sequential(nn.Conv2d(3, 6, 3), self.layer(), self.layer(), nn.Conv2d(6, 4, 1))
        fused = check(model)
        assert operators(fused) == {"0": "conv2d_bn_act", "2": "bn_act_conv2d"}
        assert fused.report()["1"].status == "fused" and fused.report()["1.act"].runs_as == "with 0"

    def test_batch_norm_with_another_activation(self):
        model = nn.Sequential(nn.Conv2d(3, 6, 3), self.layer(act_layer=nn.Softplus, inplace=False))
        assert operators(check(model)) == {"0": "conv2d_bn_act"}
        model = nn.Sequential(nn.Conv2d(3, 6, 3), self.layer(apply_act=False))
        assert operators(check(model)) == {"0": "conv2d_bn_act"}

    def test_batch_norm_that_stays_is_called_as_it_is(self):
        model = nn.Sequential(nn.Conv2d(3, 6, 3), self.layer(), nn.Conv2d(6, 4, 1))
        model[1].register_forward_hook(lambda module, args, output: output * 2)
        fused = check(model)
        assert "hooks" in fused.report()["1"].reason
        fused = check(nn.Sequential(nn.Conv2d(3, 6, 3), self.layer(drop_layer=partial(nn.Dropout, 0.0))))
        assert fused.report()["1"].status == "eager"

    def test_frozen(self):
        model = liven(nn.Sequential(nn.Conv2d(3, 6, 3), self.layer(), nn.Conv2d(6, 4, 1))).eval()
        frozen = cnnfast.freeze(model, IMAGE, strict=True)
        assert relative_error(frozen(IMAGE), model(IMAGE)) < 1e-5
        assert frozen.report()["1"].status == "fused"


def test_looks_through_identities():
    """Placeholders of dropout and blur, as timm's blocks have them."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Identity(), nn.ReLU(), nn.Identity(5, unused=True)]
    model = nn.Sequential(*layers, nn.Conv2d(4, 4, 1), nn.Identity(), nn.LeakyReLU(0.2), nn.Identity())
    fused = check(model, strict=True)
    assert operators(fused) == {"0": "conv2d_bn_act", "5": "conv2d"}
    row = fused.report()["2"]
    assert (row.status, row.reason) == ("no work", "it gives what it takes")
    with pytest.raises(RuntimeError, match="unfuse"):
        fused[2] = nn.Dropout()
    assert type(fused.unfuse()[2]) is nn.Identity
    watched = copy.deepcopy(model)
    watched[2].register_forward_hook(lambda module, args, output: output * 2)
    assert operators(check(watched))["0"] == "conv2d_bn_act"
    assert check(watched).report()["3"].status == "eager"
    kept = check(model, filter_fn=lambda name, module: name != "2")
    assert kept.report()["3"].status == "eager"
