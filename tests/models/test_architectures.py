"""The networks are those of the notes: stages, sizes, options, and answers equal to plain PyTorch's."""

import pytest
import torch
from torch import nn

import cnnfast
from cnnfast.benchmarking.plain import INPUT_SHAPES, get_plain

PARAMETERS = {
    "alexnet": 29_983_434,
    "alexnet_paper": 60_965_224,
    "densenet": 758_226,
    "googlenet": 5_977_530,
    "inception_net": 97_298,
    "lenet": 61_706,
    "nin": 1_992_166,
    "nin_single_1x1": 1_769_112,
    "residual_net": 41_514,
    "resnet18": 11_178_378,
    "resnet18_preact": 11_178_378,
    "vgg11": 128_806_154,
    "vgg11_small": 2_018_346,
}


def on_meta(name, **options):
    with torch.device("meta"):
        return cnnfast.models.get_model(name, **options)


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_every_network_of_the_notes_exists():
    assert cnnfast.models.list_models() == sorted(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_network_parameters_and_docstring(name):
    assert count(on_meta(name)) == PARAMETERS[name]
    assert f"{PARAMETERS[name]:,} parameters" in getattr(cnnfast.models, name).__doc__


STAGES = {
    "lenet": {"conv1": (6, 28, 28), "pool1": (6, 14, 14), "pool2": (16, 5, 5), "flatten": (400,)},
    "alexnet": {
        "conv1": (96, 54, 54), "pool1": (96, 26, 26), "pool2": (256, 12, 12), "conv5": (256, 12, 12),
        "pool5": (256, 5, 5), "flatten": (6400,),
    },
    "alexnet_paper": {
        "conv1": (96, 55, 55), "norm1": (96, 55, 55), "pool1": (96, 27, 27), "pool2": (256, 13, 13),
        "pool5": (256, 6, 6), "flatten": (9216,), "fc": (1000,),
    },
    "vgg11": {
        "block1": (64, 112, 112), "block2": (128, 56, 56), "block3": (256, 28, 28), "block4": (512, 14, 14),
        "block5": (512, 7, 7), "flatten": (25088,), "fc1": (4096,),
    },
    "vgg11_small": {"block1": (8, 112, 112), "block5": (64, 7, 7), "flatten": (3136,), "fc2": (512,)},
    "nin": {
        "block1": (96, 54, 54), "pool1": (96, 26, 26), "block2": (256, 26, 26), "pool2": (256, 12, 12),
        "block3": (384, 12, 12), "pool3": (384, 5, 5), "block4": (10, 5, 5), "global_avg_pool": (10, 1, 1),
    },
    "nin_single_1x1": {"block1": (96, 54, 54), "block4": (10, 5, 5)},
    "googlenet": {
        "pool1": (64, 24, 24), "pool2": (192, 12, 12), "inception3a": (256, 12, 12), "pool3": (480, 6, 6),
        "inception4a": (512, 6, 6), "inception4d": (528, 6, 6), "pool4": (832, 3, 3),
        "inception5b": (1024, 3, 3), "flatten": (1024,),
    },
    "inception_net": {
        "pool1": (10, 12, 12), "incep1": (88, 12, 12), "pool2": (20, 4, 4), "incep2": (88, 4, 4),
        "flatten": (1408,),
    },
    "residual_net": {"rblock1": (16, 12, 12), "rblock2": (32, 4, 4), "flatten": (512,)},
    "resnet18": {
        "conv1": (64, 48, 48), "pool1": (64, 24, 24), "stage1": (64, 24, 24), "stage2": (128, 12, 12),
        "stage3": (256, 6, 6), "stage4": (512, 3, 3), "global_avg_pool": (512, 1, 1),
    },
    "resnet18_preact": {"stage1": (64, 24, 24), "stage4": (512, 3, 3), "norm": (512, 3, 3)},
    "densenet": {
        "pool1": (64, 24, 24), "dense1": (192, 24, 24), "transition1": (96, 12, 12), "dense2": (224, 12, 12),
        "transition2": (112, 6, 6), "dense3": (240, 6, 6), "transition3": (120, 3, 3), "dense4": (248, 3, 3),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_network_stages(name):
    """Shapes, and that the summary takes every network and finds the multiply-adds of its plain twin."""
    shape = (2, *INPUT_SHAPES[name])
    result = cnnfast.summary(on_meta(name), shape)
    rows = {row.name: row.output_shape for row in result.rows}
    assert {stage: rows[stage] for stage in STAGES[name]} == {
        stage: (2, *size) for stage, size in STAGES[name].items()
    }
    assert rows["block4" if name.startswith("nin") else list(rows)[-1]][1] == (
        1000 if name == "alexnet_paper" else 10
    )
    assert result.parameters == PARAMETERS[name] == sum(row.parameters for row in result.rows)
    with torch.device("meta"):
        plain = cnnfast.summary(get_plain(name), shape)
    assert result.multiply_adds == plain.multiply_adds > 0
    assert str(result).count("\n") == len(result.rows) + 2


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name != "vgg11"])
def test_network_equals_its_plain_twin(name):
    """With two channels and seven classes; vgg11 differs from vgg11_small in its widths alone."""
    net = cnnfast.models.get_model(name, in_channels=2, num_classes=7).eval()
    plain = get_plain(name, in_channels=2, num_classes=7).eval()
    cnnfast.models.load_plain_state_dict(net, plain.state_dict())
    input = torch.rand(2, 2, *INPUT_SHAPES[name][1:])
    with torch.no_grad():
        own, true = net(input), plain(input)
    assert own.shape == (2, 7)
    assert (own - true).abs().max() <= 2e-5 * true.abs().max()


@pytest.mark.parametrize("name", [n for n in PARAMETERS if n.startswith(("resnet", "densenet", "googlenet"))])
def test_network_takes_other_image_sizes(name):
    net = cnnfast.models.get_model(name).eval()
    for size in ((32, 32), (45, 61)):
        assert net(torch.rand(1, 1, *size)).shape == (1, 10)


def test_alexnet_with_two_hidden_layers():
    net = on_meta("alexnet", hidden_layers=2)
    assert count(net) - PARAMETERS["alexnet"] == 4096 * 4096 + 4096
    assert [type(layer).__name__ for layer in net.fc] == ["LinearReLU", "Dropout"] * 2 + ["LinearAct"]
    with torch.device("meta"):
        assert count(net) == count(get_plain("alexnet", hidden_layers=2))
    with pytest.raises(ValueError, match="hidden_layers must be at least 1"):
        on_meta("alexnet", hidden_layers=0)


def test_alexnet_paper_is_the_one_for_two_gpus():
    net = on_meta("alexnet_paper")
    assert [net.get_submodule(f"conv{i}").conv.groups for i in range(1, 6)] == [1, 2, 1, 2, 2]
    assert [(n.size, n.alpha, n.beta, n.k) for n in (net.norm1, net.norm2)] == [(5, 1e-4, 0.75, 2.0)] * 2


def test_vgg_of_any_arch():
    net = cnnfast.models.vgg(((1, 3, 4), (2, 4, 6)), 6 * 8 * 8, 20, num_classes=5)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert [len(block) for block in (net.block1, net.block2)] == [2, 3]
    assert count(net) == 3 * 4 * 9 + 4 + 4 * 6 * 9 + 6 + 6 * 6 * 9 + 6 + 385 * 20 + 21 * 20 + 21 * 5


def test_vgg11_small_with_another_ratio():
    net = on_meta("vgg11_small", ratio=4)
    assert net.block5[0].conv.out_channels == 128 and net.fc1.out_features == 1024
    assert count(on_meta("vgg11_small", ratio=1)) == PARAMETERS["vgg11"]
    with pytest.raises(ValueError, match="ratio must divide 64, not 3"):
        on_meta("vgg11_small", ratio=3)


def test_nin_with_another_number_of_1x1_convolutions():
    assert [len(on_meta("nin", convs_1x1=n).block2) for n in (0, 1, 3)] == [1, 2, 4]
    assert count(on_meta("nin", convs_1x1=1)) == PARAMETERS["nin_single_1x1"]


def test_densenet_with_other_growth_and_layers():
    net = cnnfast.models.get_model("densenet", growth=8, layers=2).eval()
    assert [len(block.layers) for block in (net.dense1, net.dense4)] == [2, 2]
    assert net.norm.bn.num_features == 38  # 64 → 80 → 40 → 56 → 28 → 44 → 22 → 38
    assert net(torch.rand(1, 1, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_paper", "vgg11", "nin"])
def test_network_drops_half_of_its_values(name):
    dropouts = [module for module in on_meta(name).modules() if isinstance(module, nn.Dropout)]
    assert [module.p for module in dropouts] == [0.5] * {"alexnet": 1, "nin": 1}.get(name, 2)
