"""Networks on tensors (N, C, L): convolutions along one side, norms, poolings and what stands between."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast
from cnnfast.plan.codec import decode, encode
from cnnfast.plan.network import FrozenNet, JoinedNet
from cnnfast.plan.nodes import FORMAT, Op

from .support import assert_independent_of_threads, assert_near, needs_extension, truth

pytestmark = needs_extension
CHANNELS = 12


class Between(nn.Module):
    """A forward between two convolutions of lines; its operands are values of the network."""

    def __init__(self, inside, out=CHANNELS, **layers):
        super().__init__()
        self.first = nn.Conv1d(3, CHANNELS, 3, padding=1)
        self.last = nn.Conv1d(out, 5, 3, padding=2)
        self.inside = inside
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.last(self.inside(self, self.first(x)))


class Head(nn.Module):
    """A forward that makes features of a line."""

    def __init__(self, inside, features=CHANNELS):
        super().__init__()
        self.first, self.last = nn.Conv1d(3, CHANNELS, 5, 2, 2), nn.Linear(features, 4)
        self.inside = inside

    def forward(self, x):
        return self.last(self.inside(F.relu(self.first(x))))


class Gate(nn.Module):
    """Squeeze-excite of lines."""

    def __init__(self, pool, linear):
        super().__init__()
        self.pool, self.linear = pool, linear
        make = nn.Linear if linear else (lambda a, b: nn.Conv1d(a, b, 1))
        self.down, self.up = make(CHANNELS, 4), make(4, CHANNELS)

    def forward(self, x):
        s = self.pool(x)
        s = s.flatten(1) if self.linear else s
        s = torch.sigmoid(self.up(F.relu(self.down(s))))
        return x * (s.unsqueeze(-1) if self.linear else s) + x


class Shortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(
            nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm1d(CHANNELS)
        )
        self.b = nn.Sequential(nn.Conv1d(CHANNELS, CHANNELS, 7, padding=3), nn.BatchNorm1d(CHANNELS))

    def forward(self, x):
        y = self.b(F.relu(self.a(x)))
        y += x
        return F.relu(y)


def _turned(net, x):
    a, b, c = x.chunk(3, dim=1)
    return torch.cat((c, a, b), dim=1)


def _functions(net, x):
    return F.max_pool1d(F.avg_pool1d(F.interpolate(x, scale_factor=2), 2), 3, 1, 1)


LAYERS = {
    "conv": nn.Conv1d(CHANNELS, CHANNELS, 9, padding=4),
    "conv_stride": nn.Conv1d(CHANNELS, CHANNELS, 4, 2, 1),
    "conv_dilation": nn.Conv1d(CHANNELS, CHANNELS, 3, padding=4, dilation=4),
    "conv_groups": nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1, groups=3),
    "conv_depthwise": nn.Conv1d(CHANNELS, CHANNELS, 15, padding=7, groups=CHANNELS),
    "conv_same": nn.Conv1d(CHANNELS, CHANNELS, 4, padding="same"),
    "conv_reflect": nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2, padding_mode="reflect"),
    "conv_circular": nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2, padding_mode="circular"),
    "transposed": nn.ConvTranspose1d(CHANNELS, CHANNELS, 4, 2, 1),
    "transposed_output_padding": nn.ConvTranspose1d(CHANNELS, CHANNELS, 3, 2, 1, 1),
    "batch_norm": nn.BatchNorm1d(CHANNELS),
    "group_norm": nn.GroupNorm(3, CHANNELS),
    "instance_norm": nn.InstanceNorm1d(CHANNELS, affine=True),
    "max_pool": nn.MaxPool1d(3, 2, 1),
    "max_pool_ceil": nn.MaxPool1d(2, ceil_mode=True),
    "avg_pool": nn.AvgPool1d(3, 2, 1),
    "avg_pool_inside": nn.AvgPool1d(4, 3, 2, count_include_pad=False),
    "adaptive_avg": nn.AdaptiveAvgPool1d(7),
    "adaptive_max": nn.AdaptiveMaxPool1d(5),
    "prelu": nn.PReLU(CHANNELS),
    "gelu": nn.GELU(),
    "leaky": nn.LeakyReLU(0.1, inplace=True),
    "dropout": nn.Dropout1d(0.3),
    "upsample": nn.Upsample(scale_factor=2),
    "upsample_linear": nn.Upsample(scale_factor=2, mode="linear", align_corners=False),
    "zero_pad": nn.ZeroPad1d((3, 1)),
    "constant_pad": nn.ConstantPad1d(2, 1.5),
    "reflection_pad": nn.ReflectionPad1d((1, 2)),
    "replication_pad": nn.ReplicationPad1d(2),
    "shuffle": nn.ChannelShuffle(3),
    "gate_linear": Gate(nn.AdaptiveAvgPool1d(1), True),
    "gate_conv": Gate(nn.AdaptiveAvgPool1d(1), False),
    "gate_max": Gate(nn.AdaptiveMaxPool1d(1), False),
    "shortcut": Shortcut(),
    "softmax": nn.Softmax(1),
}
FORWARDS = {
    "causal": (lambda net, x: net.conv(F.pad(x, (4, 0))), {"conv": nn.Conv1d(CHANNELS, CHANNELS, 5)}),
    "chomped": (lambda net, x: net.conv(x)[:, :, :-6].contiguous(),
                {"conv": nn.Conv1d(CHANNELS, CHANNELS, 4, padding=6, dilation=2)}),
    "concat": (lambda net, x: torch.cat((x[:, :5], net.conv(x)), 1), {"conv": nn.Conv1d(CHANNELS, 7, 1)}),
    "chunks": (_turned, {}),
    "gated": (lambda net, x: F.glu(net.conv(x), dim=1), {"conv": nn.Conv1d(CHANNELS, 24, 3, padding=1)}),
    "tanh_of_half": (lambda net, x: torch.cat(2 * [torch.tanh(x[:, :6]) * torch.sigmoid(x[:, 6:])], 1), {}),
    "constants": (lambda net, x: (x * net.scale - 0.5) / net.scale.abs() * 2,
                  {"scale": nn.Parameter(torch.linspace(1, 3, CHANNELS)[:, None])}),
    "weights_of_the_forward": (lambda net, x: F.conv1d(x, net.conv.weight, None, 1, 2),
                               {"conv": nn.Conv1d(CHANNELS, CHANNELS, 5)}),
    "functions": (_functions, {}),
    "mean_taken_off": (lambda net, x: x - x.mean(-1, keepdim=True), {}),
}  # fmt: skip
HEADS = {
    "mean": (lambda x: x.mean(2), CHANNELS),
    "amax": (lambda x: x.amax(dim=-1), CHANNELS),
    "max": (lambda x: torch.max(x, 2)[0], CHANNELS),
    "max_kept": (lambda x: x.max(2, keepdim=True)[0].view(-1, CHANNELS), CHANNELS),
    "pool_of_its_length": (lambda x: F.max_pool1d(x, x.size(2)).squeeze(2), CHANNELS),
    "average_of_its_length": (lambda x: F.avg_pool1d(x, x.shape[-1]).squeeze(-1), CHANNELS),
    "flatten": (lambda x: F.adaptive_avg_pool1d(x, 4).flatten(1), 4 * CHANNELS),
    "both": (lambda x: torch.cat((x.mean(-1), x.amax(-1)), 1), 2 * CHANNELS),
}


def calibrated(model):
    """In evaluation, with statistics other than those of the beginning."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model.eval()


def _between_convolutions(layer):
    return nn.Sequential(nn.Conv1d(3, CHANNELS, 3, padding=1), layer, nn.Conv1d(CHANNELS, 5, 1))


NETWORKS = {name: partial(_between_convolutions, layer) for name, layer in LAYERS.items()}
NETWORKS |= {name: partial(Between, inside, **layers) for name, (inside, layers) in FORWARDS.items()}
NETWORKS |= {name: partial(Head, inside, features) for name, (inside, features) in HEADS.items()}
EACH = pytest.mark.parametrize("name", NETWORKS)


def made(name):
    torch.manual_seed(0)
    return calibrated(NETWORKS[name]())


@EACH
def test_values_are_those_of_the_network_in_one_plan(name):
    model, x = made(name), torch.randn(2, 3, 40)
    frozen = cnnfast.freeze(model, x, strict=True)
    assert isinstance(frozen, FrozenNet)
    for y in (x, torch.randn(3, 3, 57), torch.randn(2, 57, 3).mT):
        wanted = truth(model, y)
        assert frozen(y).shape == wanted.shape and frozen(y).is_contiguous()
        assert_near(frozen(y), wanted)
    assert_independent_of_threads(frozen, x)
    assert frozen(x[:0]).shape == (0, *frozen(x).shape[1:])


@EACH
def test_values_in_bfloat16(name):
    model, x = made(name), torch.randn(2, 3, 40)
    frozen = cnnfast.freeze(model, x, dtype=torch.bfloat16, strict=True)
    assert_near(frozen(x), truth(model, x), 4e-2)
    assert_independent_of_threads(frozen, x)


@EACH
def test_files_scripts_and_shapes_without_data(name, tmp_path):
    model, x = made(name), torch.randn(2, 3, 40)
    frozen = cnnfast.freeze(model, x, strict=True)
    wanted = frozen(x)
    assert torch.equal(cnnfast.load(frozen.save(tmp_path / "lines"))(x), wanted)
    assert torch.equal(torch.jit.script(frozen)(x), wanted)
    with torch.device("meta"):
        shapeless = torch.ops.cnnfast.run_plan(
            [torch.empty(3, 3, 51)], frozen.weights, frozen.plan, frozen.signature
        )
    assert shapeless[0].shape == model(torch.randn(3, 3, 51)).shape


@EACH
def test_onnx(name):
    onnx, runtime = (pytest.importorskip(package) for package in ("onnx", "onnxruntime"))
    from cnnfast.export.onnx_graph import to_onnx
    from cnnfast.plan.build import build

    model, x = made(name), torch.randn(2, 3, 40)
    built = build(model, (x,))
    graph = to_onnx(built.plan, built.weights.numpy(), built.names, tuple(x.shape), dynamic_batch=True)
    onnx.checker.check_model(graph, full_check=True)
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (2, 5):
        x = torch.randn(batch, 3, 40)
        assert_near(torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), truth(model, x))


def test_layers_that_know_no_lines_stay_eager_between_plans():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.front = nn.Sequential(nn.Conv1d(3, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU())
            self.middle = nn.LSTM(16, 16, batch_first=True)
            self.back = nn.Sequential(nn.Conv1d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 4, 1))

        def forward(self, x):
            y, _ = self.middle(self.front(x).transpose(1, 2))
            return self.back(y.transpose(1, 2))

    model, x = calibrated(Recurrent()), torch.randn(2, 3, 33)
    frozen = cnnfast.freeze(model, x)
    assert isinstance(frozen, JoinedNet) and len(frozen.plans()) == 2
    for y in (x, torch.randn(3, 3, 20)):
        assert_near(frozen(y), truth(model, y))


def test_tokens_are_no_lines():
    """(N, L, C) is not taken for (N, C, L) by layers that work value by value."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mix = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 16)

        def forward(self, x):
            x = self.conv(x).flatten(2).transpose(1, 2)
            return torch.tanh(F.gelu(torch.sigmoid(self.mix(x)) * 2) + x).mean(1)

    model, x = Tokens().eval(), torch.randn(2, 3, 16, 16)
    frozen = cnnfast.freeze(model, x)
    plans = [decode(part.plan) for part in frozen.plans().values()]
    assert not any(plan.has_lines for plan in plans)
    assert_near(frozen(x), truth(model, x))


def test_a_part_may_take_lines_and_pass_them_on():
    """A sum of a plan's line and one that stays eager."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv1d(6, 6, 3, padding=1), nn.Conv1d(6, 2, 1)

        def forward(self, x):
            other = torch.cumsum(x, -1)
            return self.last(F.relu(self.conv(x)) + other), other

    model, x = Sum().eval(), torch.randn(2, 6, 25)
    frozen = cnnfast.freeze(model, x)
    for got, wanted in zip(frozen(x), model(x), strict=True):
        assert_near(got, wanted.double())


def test_plans_of_lines_have_a_format_of_their_own():
    model, x = made("conv"), torch.randn(2, 3, 40)
    frozen = cnnfast.freeze(model, x, strict=True)
    assert frozen.plan[1] == FORMAT
    assert str(frozen).count("input 3-D, 3 channels") == 1 and str(frozen).count("to_line") == 1
    plan = decode(frozen.plan)
    assert torch.equal(encode(plan, frozen.weights), frozen.plan)
    assert [node.op for node in plan.nodes][-1] is Op.TO_LINE


def test_what_a_causal_convolution_leaves_out_is_not_computed():
    for name, padding in (("chomped", (6, 0)), ("causal", (4, 0))):
        nodes = decode(cnnfast.freeze(made(name), torch.randn(2, 3, 40), strict=True).plan).nodes
        assert not any(node.op in (Op.CROP, Op.PAD) for node in nodes)
        assert padding in [(node["pad_left"], node["pad_right"]) for node in nodes if node.op is Op.CONV2D]


def test_rows_and_columns_left_out_behind_a_stride():
    conv = nn.Conv2d(3, 8, 5, stride=(2, 1), padding=(4, 3))

    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, x):
            return F.relu(self.conv(x)[:, :, 1:-1, 2:-3])

    model, x = Cut().eval(), torch.randn(2, 3, 17, 18)
    frozen = cnnfast.freeze(model, x, strict=True)
    assert [node.op for node in decode(frozen.plan).nodes] == [Op.INPUT, Op.CONV2D]
    for size in ((17, 18), (20, 25), (12, 9)):
        y = torch.randn(2, 3, *size)
        assert_near(frozen(y), truth(model, y))


@pytest.mark.parametrize("shape", [(2, 3, 1, 40), (3, 40), (2, 4, 40), (2, 3, 0)])
def test_other_inputs_are_errors(shape):
    frozen = cnnfast.freeze(made("conv"), torch.randn(2, 3, 40), strict=True)
    with pytest.raises(RuntimeError, match="the network takes an input of|is empty"):
        frozen(torch.randn(shape))


def test_profile_of_lines():
    model, x = made("gate_linear"), torch.randn(2, 3, 400)
    profile = cnnfast.freeze(model, x, strict=True).profile(x, 2)
    assert [row.shape for row in profile.rows][0] == (2, 3, 1, 400)
    assert sum(row.seconds for row in profile.rows) > 0
