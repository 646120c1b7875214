"""The plain networks are the notes' own: keys, sizes, answers."""

import fill
import pytest
import torch

from cnnfast.benchmarking.plain import BUILDERS, INPUT_SHAPES, get_plain

# Large ones are held to keys and shapes; filling and running them takes too long for every test run.
LARGE = {"alexnet", "alexnet_paper", "vgg11"}


def test_plain_has_every_network_of_the_notes(golden):
    assert set(BUILDERS) == set(INPUT_SHAPES) == set(golden)


@pytest.mark.parametrize("name", BUILDERS)
def test_plain_keys_and_shapes(name, golden):
    with torch.device("meta"):
        net = get_plain(name)
    entries = [
        (key, list(value.shape)) for key, value in net.state_dict().items() if "num_batches" not in key
    ]
    assert entries == [(key, shape) for key, shape in golden[name]["entries"]]
    assert list(INPUT_SHAPES[name]) == golden[name]["input_shape"][1:]


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in LARGE])
def test_plain_logits(name, golden):
    case = golden[name]
    net = get_plain(name).double().eval()
    state = net.state_dict()
    for index, (key, shape) in enumerate(case["entries"]):
        values = fill.tensor_values(index, key.rpartition(".")[2], tuple(shape), case["gain"])
        state[key].copy_(torch.from_numpy(values))
    with torch.no_grad():
        logits = net(torch.from_numpy(fill.input_values(tuple(case["input_shape"]))))
    torch.testing.assert_close(logits, torch.tensor(case["logits"], dtype=torch.float64), rtol=0, atol=1e-8)


def test_plain_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="'lenett'.*lenet, alexnet"):
        get_plain("lenett")


def test_alexnet_with_two_hidden_layers_has_the_keys_of_two():
    with torch.device("meta"):
        net = get_plain("alexnet", hidden_layers=2)
    assert net.fc[3].weight.shape == (4096, 4096)
    assert net.fc[6].weight.shape == (10, 4096)
