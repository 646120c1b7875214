"""Single layers at shapes that the networks of the notes have."""

import pytest

from cnnfast.benchmarking import ModelSpec

CONTENDERS = ["eager", "eager_channels_last", "cnnfast_fused", "cnnfast_frozen"]


def _layer(label, build, input_shape, *sizes, **options):
    names = {
        "conv": ("in_channels", "out_channels", "kernel_size"),
        "max_pool": ("kernel_size", "stride"),
        "avg_pool": ("kernel_size", "stride"),
        "linear": ("in_features", "out_features"),
    }[build]
    kwargs = dict(zip(names, sizes, strict=True), **options)
    return ModelSpec(f"cnnfast.benchmarking.layers:{build}", kwargs, input_shape, label=label)


LAYERS = [
    _layer("conv3x3_relu 64-64 56x56", "conv", (64, 56, 56), 64, 64, 3, padding=1, relu=True),
    _layer(
        "conv3x3_bn_relu 128-128 28x28",
        "conv",
        (128, 28, 28),
        128,
        128,
        3,
        padding=1,
        batch_norm=True,
        relu=True,
    ),
    _layer(
        "conv3x3_s2_bn_relu 128-256 28x28",
        "conv",
        (128, 28, 28),
        128,
        256,
        3,
        stride=2,
        padding=1,
        batch_norm=True,
        relu=True,
    ),
    _layer("conv3x3_relu 512-512 7x7", "conv", (512, 7, 7), 512, 512, 3, padding=1, relu=True),
    _layer("conv1x1_relu 256-128 14x14", "conv", (256, 14, 14), 256, 128, 1, relu=True),
    _layer("conv5x5_relu 1-16 28x28", "conv", (1, 28, 28), 1, 16, 5, relu=True),
    _layer("conv5x5_relu 96-256 26x26", "conv", (96, 26, 26), 96, 256, 5, padding=2, relu=True),
    _layer(
        "conv7x7_s2_bn_relu 1-64 96x96",
        "conv",
        (1, 96, 96),
        1,
        64,
        7,
        stride=2,
        padding=3,
        batch_norm=True,
        relu=True,
    ),
    _layer("conv11x11_s4_relu 1-96 224x224", "conv", (1, 224, 224), 1, 96, 11, stride=4, relu=True),
    _layer("max_pool 3/2 64x48x48", "max_pool", (64, 48, 48), 3, 2, padding=1),
    _layer("avg_pool 2/2 16x28x28", "avg_pool", (16, 28, 28), 2, 2),
    _layer("linear_relu 4096-4096", "linear", (4096, 1, 1), 4096, 4096),
]


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.label.replace(" ", "_"))
def test_operator(layer, batch, contender, measure):
    measure(layer, batch)
