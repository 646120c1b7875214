"""What a plan folds: activations, scales and padding go into the steps that they stand beside."""

import torch

import cnnfast
from cnnfast.plan.codec import decode
from cnnfast.plan.nodes import Act, Op

from .plan_operations import ACTIVATIONS, made
from .support import needs_extension

pytestmark = needs_extension


def operations(name, **kwargs):
    return decode(cnnfast.freeze(made(name), torch.randn(2, 3, 14, 12), strict=True).plan).nodes


def test_plan_activations_are_folded_into_convolutions():
    for name in ACTIVATIONS:
        nodes = operations(f"activation_{name}")
        assert [node.op for node in nodes] == [Op.INPUT, Op.CONV2D, Op.CONV2D], name
        assert nodes[1].activation is not Act.NONE


def test_plan_folds_what_stands_around_convolutions():
    assert [n.op for n in operations("layer_scale_residual")].count(Op.CONV2D) == 3
    assert {n.op for n in operations("layer_scale_residual")} == {Op.INPUT, Op.CONV2D}
    assert {n.op for n in operations("pad_into_conv")} == {Op.INPUT, Op.CONV2D}
    assert {n.op for n in operations("constants")} == {Op.INPUT, Op.CONV2D}
    assert [n.op for n in operations("own_silu")] == [Op.INPUT, Op.CONV2D, Op.CONV2D]
    residual = [n for n in operations("squeeze_excite_residual") if n.op is Op.MULTIPLY]
    assert [(len(n.inputs), n.activation) for n in residual] == [(3, Act.RELU)]


def test_plan_makes_transposed_convolutions_ordinary_ones():
    """Batch norm and activation go into the convolution in front of the pixels it becomes."""
    nodes = operations("transposed_4x4")
    assert [n.op for n in nodes] == [Op.INPUT, Op.CONV2D, Op.CONV2D, Op.DEPTH_TO_SPACE, Op.CONV2D]
    assert nodes[2].activation is Act.RELU and nodes[2]["out_channels"] == 48 and nodes[2]["kernel_h"] == 2


def test_plan_folds_what_scales_a_gated_residual():
    nodes = operations("layer_response_norm")
    assert [n.op for n in nodes].count(Op.MULTIPLY) == 2 and Op.ADD not in [n.op for n in nodes]
    (x,) = [torch.randn(2, 3, 14, 12)]
    frozen = cnnfast.freeze(made("layer_response_norm"), x, strict=True)
    assert "multiply, one value per channel, conv 1x1" in torch.ops.cnnfast.describe_plan(
        [x], frozen.weights, frozen.plan
    )


def test_plan_shuffle_reads_the_parts_of_a_concatenation():
    x = torch.randn(2, 3, 14, 12)
    frozen = cnnfast.freeze(made("layer_shuffle_units"), x, strict=True)
    steps = torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan)
    assert steps.count("shuffle") == 2 and "copy 2x" not in steps
