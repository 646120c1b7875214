"""get_model, list_models, register_model and load_plain_state_dict."""

import pytest
import torch
from torch import nn

from cnnfast import models
from cnnfast.benchmarking.plain import BUILDERS
from cnnfast.models import registry
from cnnfast.models.checkpoint import plain_key_map


def test_list_models_with_patterns():
    names = models.list_models()
    assert names == sorted(names) and {"lenet", "residual_net"} <= set(names)
    assert models.list_models("le*") == ["lenet"]
    assert models.list_models(["lenet", "residual*"]) == ["lenet", "residual_net"]
    assert "lenet" not in models.list_models(exclude="*net")
    assert models.list_models(include="*net", exclude=["residual*"])[-1:] != ["residual_net"]


def test_get_model_passes_options():
    net = models.get_model("lenet", in_channels=3, num_classes=7)
    assert net(torch.randn(2, 3, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize(
    "name, right", [("lennet", "lenet"), ("LeNet", "lenet"), ("residual-net", "residual_net")]
)
def test_get_model_shows_the_right_name(name, right):
    with pytest.raises(ValueError) as error:
        models.get_model(name)
    assert f'write get_model("{right}")' in str(error.value) and "There are: " in str(error.value)


def test_get_model_unlike_anything_lists_the_names():
    with pytest.raises(ValueError, match="There are: .*lenet.*residual_net"):
        models.get_model("zzz")


def test_get_model_shows_the_right_option():
    with pytest.raises(TypeError, match=r'write get_model\("lenet", num_classes=10\)'):
        models.get_model("lenet", num_clases=10)


def test_register_model(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    @models.register_model
    def tiny(width=3):
        return nn.Linear(width, 1)

    assert models.get_model("tiny", width=5).in_features == 5
    with pytest.raises(ValueError, match="'tiny' already"):
        models.register_model(tiny)


def plain_checkpoint():
    """A checkpoint whose network has a batch norm: its counter must be passed over."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).state_dict()


def own_network():
    return nn.ModuleDict({"a": nn.Conv2d(3, 4, 3), "b": nn.BatchNorm2d(4), "c": nn.Linear(4, 2)})


def test_load_plain_state_dict_goes_by_position():
    checkpoint, net = plain_checkpoint(), own_network()
    checkpoint["1.running_mean"].fill_(3.0)
    assert models.load_plain_state_dict(net, checkpoint) is net
    assert torch.equal(net["b"].running_mean, torch.full((4,), 3.0))
    assert torch.equal(net["c"].weight, checkpoint["3.weight"])
    assert net["c"].weight.data_ptr() != checkpoint["3.weight"].data_ptr()


def test_load_plain_state_dict_takes_float64():
    checkpoint = {key: tensor.double() for key, tensor in plain_checkpoint().items()}
    net = models.load_plain_state_dict(own_network(), checkpoint)
    assert net["a"].weight.dtype == torch.float32


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c.pop("3.bias"), ["has 8 tensors, the checkpoint 7", "c.bias"]),
        (lambda c: c.update({"4.weight": torch.zeros(1)}), ["the checkpoint 9", "4.weight"]),
        (
            lambda c: c.update({"0.weight": torch.zeros(4, 3, 5, 5)}),
            ["'0.weight'", "[4, 3, 5, 5]", "'a.weight'"],
        ),
    ],
    ids=["missing", "extra", "shape"],
)
def test_load_plain_state_dict_errors_change_nothing(change, words):
    checkpoint, net = plain_checkpoint(), own_network()
    change(checkpoint)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(ValueError) as error:
        models.load_plain_state_dict(net, checkpoint)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())


def test_load_plain_state_dict_in_the_order_of_the_parts():
    """Every block names its own order, anywhere in the network."""
    block = own_network()
    block.plain_prefixes = ("c", "a", "b")
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(block))
    plain = nn.Sequential(nn.Linear(2, 2), nn.Linear(4, 2), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    models.load_plain_state_dict(net, plain.state_dict())
    assert torch.equal(block["c"].weight, plain[1].weight) and torch.equal(block["a"].bias, plain[2].bias)
    net.plain_prefixes = ("1.0.b", "0", "1.0.a", "1.0.c")
    ordered = list(plain_key_map(net, list(plain.state_dict())).values())
    assert [key for key in ordered if key.endswith("weight")] == [
        "1.0.b.weight",
        "0.weight",
        "1.0.a.weight",
        "1.0.c.weight",
    ]


@pytest.mark.parametrize("name", BUILDERS)
def test_load_plain_state_dict_knows_every_network(name):
    with torch.device("meta"):
        net, plain = models.get_model(name), BUILDERS[name]()
    state, theirs = net.state_dict(), plain.state_dict()
    for key, own in plain_key_map(net, list(theirs)).items():
        assert state[own].shape == theirs[key].shape and own.split(".")[-1] == key.split(".")[-1], key


def test_load_plain_state_dict_in_the_order_a_network_names():
    net = own_network()
    net.plain_prefixes = ("a", "b")
    with pytest.raises(ValueError, match="do not cover"):
        models.load_plain_state_dict(net, plain_checkpoint())
