"""Padding that follows from the size of the image, as TensorFlow has it: planned for every size."""

import pytest
import torch
from torch import nn

import cnnfast
from cnnfast.plan.codec import decode, encode
from cnnfast.plan.nodes import SAME, SAME_FORMAT, Op

from .plan_interpreter import run
from .support import assert_near, needs_extension, truth

pytestmark = needs_extension
layers = pytest.importorskip("timm.layers", reason="timm is not installed: pip install '.[zoo]'")
pools = pytest.importorskip("timm.layers.pool2d_same")
SIZES = ((14, 12), (13, 15), (7, 8), (9, 30), (3, 2))


def conv(ins, outs, kernel, **settings):
    return layers.Conv2dSame(ins, outs, kernel, **settings)


def inverted_residual(channels, kernel, stride):
    wide = 6 * channels
    return nn.Sequential(
        nn.Conv2d(channels, wide, 1), nn.BatchNorm2d(wide), nn.SiLU(),
        conv(wide, wide, kernel, stride=stride, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.SiLU(),
        nn.Conv2d(wide, channels, 1), nn.BatchNorm2d(channels),
    )  # fmt: skip


NETWORKS = {
    "stride_2": lambda: [conv(3, 8, 3, stride=2), nn.ReLU(), conv(8, 8, 3, stride=2)],
    "even_kernel": lambda: [conv(3, 8, 2), conv(8, 8, (4, 1), stride=(3, 2))],
    "dilated": lambda: [conv(3, 8, 3, dilation=2), conv(8, 8, 3, stride=2, dilation=3)],
    "wide_stride": lambda: [conv(3, 8, 2, stride=3), conv(8, 8, 1, stride=2)],
    "grouped": lambda: [conv(3, 12, 5, stride=2), nn.BatchNorm2d(12), conv(12, 24, 3, stride=2, groups=3)],
    "winograd": lambda: [conv(3, 32, 3, stride=1), conv(32, 32, 3), nn.ReLU(), conv(32, 32, 5)],
    "inverted_residual": lambda: [conv(3, 16, 3, stride=2), nn.SiLU(), inverted_residual(16, 5, 2)],
    "inverted_residual_3": lambda: [nn.Conv2d(3, 16, 1), inverted_residual(16, 3, 2), nn.Conv2d(16, 4, 1)],
    "pool_behind_conv": lambda: [nn.Conv2d(3, 8, 3, padding=1), pools.MaxPool2dSame(3, 2), nn.ReLU()],
    "pools": lambda: [conv(3, 8, 3), nn.Tanh(), pools.AvgPool2dSame(3, 2), pools.MaxPool2dSame(2, 2)],
    "pool_before_conv": lambda: [nn.Conv2d(3, 8, 1), pools.AvgPool2dSame((2, 3), 2), nn.Conv2d(8, 20, 1)],
    "odd_pools": lambda: [
        nn.Conv2d(3, 8, 1), pools.MaxPool2dSame(3, 1, dilation=2), pools.AvgPool2dSame(5, 3, ceil_mode=True),
    ],
}  # fmt: skip
EACH = pytest.mark.parametrize("name", NETWORKS)


def made(name):
    torch.manual_seed(1)
    model = nn.Sequential(*NETWORKS[name]()).eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    return model


@EACH
def test_same_padding_for_every_size(name):
    model = made(name)
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 14, 12), strict=True)
    for height, width in SIZES:
        x = torch.randn(2, 3, height, width)
        wanted, actual = truth(model, x), frozen(x)
        assert_near(actual, wanted)
        assert_near(actual, run(decode(frozen.plan), frozen.weights, [x])[0])
        meta = torch.ops.cnnfast.run_plan(
            [x.to("meta")], frozen.weights.to("meta"), frozen.plan.to("meta"), frozen.signature
        )[0]
        assert meta.shape == wanted.shape


@EACH
def test_same_padding_in_bfloat16(name):
    model = made(name)
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 14, 12), dtype=torch.bfloat16, strict=True)
    for height, width in SIZES[:3]:
        x = torch.randn(2, 3, height, width)
        assert_near(frozen(x), truth(model, x), 3e-2)


def test_same_padding_keeps_nan_where_eager_does():
    model = made("pools")
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 13, 15), winograd=False)
    x = torch.randn(1, 3, 13, 15)
    x[0, :, 12, 14] = float("nan")
    assert torch.equal(frozen(x).isnan(), model(x).isnan())


def test_same_padding_is_written_in_files_and_words(tmp_path):
    model, x = made("grouped"), torch.randn(2, 3, 9, 10)
    frozen = cnnfast.freeze(model, x)
    assert "padding same" in repr(frozen) and frozen.plan[1] == SAME_FORMAT
    loaded = cnnfast.load(frozen.save(tmp_path / "net.safetensors"))
    larger = torch.randn(1, 3, 22, 17)
    assert torch.equal(loaded(larger), frozen(larger))
    assert "conv2d 12→24" in str(frozen.profile(x, repeats=1))
    scripted = torch.jit.script(frozen)
    assert torch.equal(scripted(larger), frozen(larger))


def test_same_padding_on_some_sides_is_damage():
    frozen = cnnfast.freeze(made("stride_2"), torch.randn(1, 3, 9, 10))
    plan = decode(frozen.plan)
    for node in plan.nodes:
        if node.op is Op.CONV2D:
            assert node["pad_left"] == SAME
            node.attributes["pad_left"] = 1
    words = encode(plan, frozen.weights)
    with pytest.raises(RuntimeError, match="wrong padding"):
        torch.ops.cnnfast.run_plan([torch.randn(1, 3, 9, 10)], frozen.weights, words)


@pytest.mark.parametrize("name", ["dilated", "inverted_residual", "pools", "odd_pools"])
def test_same_padding_in_onnx(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model, x = made(name), torch.randn(2, 3, 13, 15)
    path = cnnfast.export(cnnfast.freeze(model, x), tmp_path / "net.onnx", format="onnx", example_inputs=x)
    (got,) = runtime.InferenceSession(str(path)).run(None, {"input": x.numpy()})
    assert_near(torch.from_numpy(got), truth(model, x))


def test_same_padding_compiles_with_other_sizes():
    model = made("stride_2")
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 14, 12))
    exported = torch.export.export(frozen, (torch.randn(2, 3, 14, 12),), strict=False)
    x = torch.randn(2, 3, 14, 12)
    assert torch.equal(exported.module()(x), frozen(x))


def test_zeros_in_front_of_same_padding_are_no_part_of_it():
    model = nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), conv(3, 8, 3, stride=2)).eval()
    x = torch.randn(2, 3, 10, 11)
    assert_near(cnnfast.freeze(model, x, strict=True)(x), truth(model, x))


@pytest.mark.parametrize("kind", ["StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"])
def test_standardised_weights_are_constants(kind):
    torch.manual_seed(0)
    cls = getattr(layers, kind)
    model = nn.Sequential(cls(3, 8, 3, stride=2), nn.ReLU(), cls(8, 6, 3, groups=2, bias=True)).eval()
    if hasattr(model[0], "gain"):
        nn.init.uniform_(model[0].gain, 0.5, 2)
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 12, 12), strict=True)
    for size in (12, 13):
        x = torch.randn(2, 3, size, size)
        assert_near(frozen(x), truth(model, x))
    assert frozen.report()["0"].runs_as.startswith("node")


def test_subclasses_of_known_layers_stay_as_they_are():
    class Doubled(layers.Conv2dSame):
        def forward(self, x):
            return 2 * super().forward(x)

    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), Doubled(4, 5, 3, stride=2)).eval(), torch.randn(1, 3, 11, 12)
    assert_near(cnnfast.freeze(model, x)(x), truth(model, x))
