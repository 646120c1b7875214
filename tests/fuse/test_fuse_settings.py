"""Settings of layers that are set after a network was fused."""

import copy

import pytest
import torch
from torch import nn

import cnnfast

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
CHANGES = {
    "slope": (lambda: nn.LeakyReLU(0.1), {"negative_slope": 1 / 3}),
    "alpha": (lambda: nn.ELU(1), {"alpha": 0.3}),
    "limits": (lambda: nn.Hardtanh(), {"min_val": -0.25, "max_val": 1e-5}),
    "form": (lambda: nn.GELU(), {"approximate": "tanh"}),
    "share": (lambda: nn.Dropout(0.25), {"p": 1.0}),
    "eps": (lambda: nn.BatchNorm2d(4), {"eps": 0.5, "momentum": None}),
}


def network(layer):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), layer(), nn.Flatten(), nn.Linear(144, 5), layer_of_rows(layer()))


def layer_of_rows(layer):
    return nn.BatchNorm1d(5) if isinstance(layer, nn.BatchNorm2d) else layer


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("training", [True, False])
def test_numbers_of_layers_are_followed(kind, training):
    layer, changes = CHANGES[kind]
    fused = cnnfast.fuse(network(layer))
    before = fused.eval()(IMAGE)
    for i in (1, 4):
        for name, value in changes.items():
            setattr(fused[i], name, value)
    model = copy.deepcopy(fused.unfuse())
    for net in (fused, model):
        net.train(training)
    torch.testing.assert_close(fused(IMAGE), model(IMAGE), rtol=0, atol=1e-5)
    assert kind == "share" or not torch.equal(fused.eval()(IMAGE), before)
    other = copy.deepcopy(fused).eval()
    torch.testing.assert_close(other(IMAGE), model.eval()(IMAGE), rtol=0, atol=1e-5)


def test_an_activation_in_the_place_of_another():
    for kind, old, new in ((nn.LeakyReLU, 0.1, 0.7), (nn.GELU, "none", "tanh")):
        fused = cnnfast.fuse(network(lambda kind=kind, old=old: kind(old)))
        fused[1] = kind(new)
        torch.testing.assert_close(fused(IMAGE), fused.unfuse()(IMAGE), rtol=0, atol=1e-5)


def test_an_activation_of_several_places_is_not_replaced_in_one():
    shared = nn.LeakyReLU(0.1)
    fused = cnnfast.fuse(network(lambda: shared))
    with pytest.raises(RuntimeError, match="fused.unfuse()"):
        fused[1] = nn.LeakyReLU(0.7)
    shared, fused[4].negative_slope = fused[1], 0.7
    assert shared.negative_slope == 0.7
    torch.testing.assert_close(fused(IMAGE), fused.unfuse()(IMAGE), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["slope", "limits", "form"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_numbers_in_scripts_and_compiled(kind):
    fused = cnnfast.fuse(network(CHANGES[kind][0])).eval()
    wanted = fused(IMAGE)
    torch.testing.assert_close(torch.jit.script(fused)(IMAGE), wanted)
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(IMAGE), wanted)
    for name, value in CHANGES[kind][1].items():
        setattr(fused[1], name, value)
    torch.testing.assert_close(compiled(IMAGE), fused(IMAGE))
    if kind != "form":
        with pytest.raises(torch.jit.Error, match="changed since the network was fused"):
            torch.jit.script(fused)(IMAGE)


@pytest.mark.parametrize("padding", [1, "same"])
def test_another_padding_mode_is_refused(padding):
    class Net(nn.Sequential):
        def forward(self, x):
            return torch.cat([super().forward(x), x], 1)

    conv = nn.Conv2d(3, 4, 3, padding=padding)
    dense = (nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1))
    for model, i in ((nn.Sequential(conv, nn.ReLU()), 0), (Net(*dense), 2), (nn.Sequential(*dense), 2)):
        fused = cnnfast.fuse(model)
        fused(IMAGE)
        fused[i].padding_mode = "circular"
        with pytest.raises(RuntimeError, match="padding_mode was 'zeros'.*fused.unfuse()"):
            fused(IMAGE)
        again = fused.unfuse()
        torch.testing.assert_close(cnnfast.fuse(again)(IMAGE), again(IMAGE), rtol=0, atol=1e-5)
