"""The operations that came with format 6, in bfloat16, files and ONNX, and refused where damaged."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast
from cnnfast.plan.codec import decode, encode
from cnnfast.plan.nodes import FLOAT_FORMAT, FORMAT, SAME_FORMAT, Op, PlanError

from .plan_operations import CASES, NOT_EMPTY, TRANSPOSED, made
from .support import assert_near, needs_extension, truth

pytestmark = needs_extension
NEW = [
    "channel_mean", "channel_max", "channels_last_pixels", "pixels_and_channels", "gate_of_a_slice",
    "quotient", "powers", "classes", "image_norm", "two_paths",
    "softmax_of_paths", "attention_pool", "attention_bmm",
    "layer_channel_filter", "layer_channel_filter_wide", "layer_response_norm", "crop", "crop_by_padding",
    "every_third", "pixel_shuffle", "pixel_unshuffle", "space_to_depth", "reflect", "replicate_and_circular",
    "pad_to_size", "layer_circular_conv", *(f"transposed_{name}" for name in TRANSPOSED),
]  # fmt: skip
EACH = pytest.mark.parametrize("name", NEW)


@EACH
def test_new_operations_in_bfloat16(name):
    model = made(name)
    frozen = cnnfast.freeze(model, torch.randn(2, 3, 14, 12), dtype=torch.bfloat16, strict=True)
    for size in ((14, 12), (16, 20)):
        x = torch.randn(2, 3, *size)
        assert_near(frozen(x), truth(model, x), 4e-2)


@EACH
def test_new_operations_in_onnx(name):
    onnx, runtime = (pytest.importorskip(package) for package in ("onnx", "onnxruntime"))
    from cnnfast.export.onnx_graph import to_onnx
    from cnnfast.plan.build import build

    model, x = made(name), torch.randn(2, 3, 14, 12)
    built = build(model, (x,))
    graph = to_onnx(built.plan, built.weights.numpy(), built.names, tuple(x.shape), dynamic_batch=True)
    onnx.checker.check_model(graph, full_check=True)
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (2, 5):
        x = torch.randn(batch, 3, 14, 12)
        assert_near(torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), truth(model, x))


def test_plans_are_written_in_the_oldest_format_that_has_them(tmp_path):
    x = torch.randn(2, 3, 14, 12)
    for name, version in (("layer_prelu", FLOAT_FORMAT), ("pad", FLOAT_FORMAT), ("pad_to_size", SAME_FORMAT)):
        frozen = cnnfast.freeze(made(name), x, strict=True)
        assert frozen.plan[1] == version
        assert torch.equal(cnnfast.load(frozen.save(tmp_path / name))(x), frozen(x))


BAD = {
    Op.CHANNEL_CONV: ("taps", (0, 2, -3), "number of taps"),
    Op.CROP: ("left", (-1,), "number of rows or columns"),
    Op.DEPTH_TO_SPACE: ("block_h", (0, -1, 5), "block|cannot take"),
    Op.MIRROR_PAD: ("mode", (-1, 3), "mode"),
}
HOLDS = {
    Op.CHANNEL_CONV: "layer_channel_filter", Op.CROP: "crop", Op.DEPTH_TO_SPACE: "transposed_4x4",
    Op.MIRROR_PAD: "reflect",
}  # fmt: skip


@pytest.mark.parametrize("op", BAD, ids=lambda op: op.name)
def test_damaged_attributes_are_errors(op):
    x = torch.randn(1, 3, 14, 12)
    frozen = cnnfast.freeze(made(HOLDS[op]), x, strict=True)
    attribute, values, words = BAD[op]
    for value in values:
        plan = decode(frozen.plan)
        next(node for node in plan.nodes if node.op is op).attributes[attribute] = value
        with pytest.raises(RuntimeError, match=words):
            torch.ops.cnnfast.run_plan([x], frozen.weights, encode(plan, frozen.weights))


def test_images_too_small_to_be_mirrored_or_cut_are_errors():
    frozen = cnnfast.freeze(nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 8, 8))
    with pytest.raises(RuntimeError, match="mirror_pad.* cannot take"):
        frozen(torch.randn(1, 3, 3, 8))
    assert frozen(torch.randn(1, 3, 4, 4)).shape == (1, 4, 8, 8)
    model = CASES["crop"]().eval()
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 8, 8), strict=True)
    with pytest.raises(RuntimeError, match="crop.* cannot take"):
        frozen(torch.randn(1, 3, 3, 8))


def test_older_libraries_are_told_to_update():
    words = cnnfast.freeze(made("reflect"), torch.randn(1, 3, 14, 12)).plan.clone()
    words[1] = FORMAT + 1
    with pytest.raises(PlanError, match="update"):
        decode(words)


def test_batch_of_nothing():
    for name in ("channel_max", "crop", "reflect", "transposed_4x4"):
        assert name not in NOT_EMPTY
        assert cnnfast.freeze(made(name), torch.randn(1, 3, 14, 12))(torch.randn(0, 3, 14, 12)).shape[0] == 0


def test_attention_over_large_logits_does_not_overflow():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.first(x) * 200
            shares = F.softmax(x[:, :1].flatten(2), -1).transpose(1, 2)
            return self.last((x.flatten(2) @ shares).unsqueeze(-1))

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(3, 3, 9, 7)
    assert_near(cnnfast.freeze(model, x, strict=True)(x), truth(model, x))
