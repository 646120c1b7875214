"""Forwards that take another path in training than in evaluation: a graph for each."""

import copy
import importlib
import pickle
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast

from .networks import liven
from .support import IMAGE, check, compare_steps, operators

Results = namedtuple("Results", "main auxiliary")


class Block(nn.Module):
    """A residual block that adds noise while training, and scales in evaluation."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.entry = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU())
        self.keep = 0.75

    def forward(self, x):
        x = self.entry(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.training:
            return F.relu(x + y)
        return F.relu(x + self.keep * y)


class Auxiliary(nn.Module):
    """A head that is called while training alone, and results of another type then."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(72, 5))
        self.aux = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x):
        x = self.stem(x)
        aux = self.aux(x) if self.training else None
        x = self.head(self.pool(x))
        return Results(x, aux) if self.training else x


def auxiliary_sum(model, x):
    result = model(x)
    return result.main.square().sum() + result.auxiliary.sum() if model.training else result.square().sum()


def test_layers_of_both_paths_are_fused():
    fused = check(Block())
    kinds = {"entry.0": "conv2d", "conv1": "conv2d_bn_act", "conv2": "conv2d_bn_act"}
    assert operators(fused) == kinds
    assert not fused.report().notes and fused.report().coverage.layers == 1


def test_inside_a_network_that_traces():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Block(6), Block(6), nn.Conv2d(6, 2, 1))
    assert check(model).report().coverage.layers == 1


def test_the_mode_is_that_of_the_module_itself():
    model = liven(nn.Sequential(Block(), Block()))
    fused = cnnfast.fuse(copy.deepcopy(model))
    for net in (model.train(), fused.train()):
        net[0].eval()
    compare_steps(fused, model, IMAGE)
    for net in (model, fused):
        net[0].train()
        net[1].bn1.eval()
    compare_steps(fused, model, IMAGE)


def test_results_of_another_type_and_heads_of_training_alone():
    model = liven(Auxiliary())
    fused = cnnfast.fuse(copy.deepcopy(model), IMAGE)
    kinds = operators(fused)
    assert kinds == {
        "stem.0": "conv2d_bn_act", "pool": "max_pool2d", "head.1": "linear", "aux.0": "conv2d",
        "aux.2": "global_avg_pool2d",
    }  # fmt: skip
    for mode in (True, False, True):
        gradients = []
        for net in (fused.train(mode), model.train(mode)):
            auxiliary_sum(net, IMAGE).backward()
            gradients.append([p.grad for p in net.parameters()])
            net.zero_grad()
        for got, wanted in zip(*gradients, strict=True):
            assert (got is None) == (wanted is None)
            if got is not None:
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    for actual, wanted in zip(fused.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(actual, wanted)
    assert type(fused(IMAGE)) is Results and isinstance(fused.eval()(IMAGE), torch.Tensor)


def test_the_example_leaves_running_averages_alone():
    model = liven(Auxiliary()).train()
    before = [buffer.clone() for buffer in model.buffers()]
    cnnfast.fuse(model, IMAGE, verify=True)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


def test_a_layer_that_one_path_leaves_eager_is_reported_so():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) * y if self.training else self.bn(y) * self.bn(y)

    rows = {row.name: row for row in check(Net()).report().rows}
    assert rows["conv"].status == "fused"
    assert rows["bn"].status == "eager" and "called 2 times" in rows["bn"].reason


def test_paths_drawn_at_random_keep_their_forward():
    class Dropped(Block):
        def forward(self, x):
            if self.training and torch.rand(1).item() < 0.5:
                return x
            return super().forward(x)

    model = Dropped()
    fused = cnnfast.fuse(model, IMAGE)
    assert "keeps its own forward" in fused.report().notes[0]
    same = [torch.equal(fused.train()(IMAGE), IMAGE) for _ in range(40)]
    assert any(same) and not all(same)


def test_a_wrong_graph_of_training_is_found_by_the_example():
    class Asks(Block):
        def forward(self, x):
            if self.training and type(x) is torch.Tensor:  # tracing sees a Proxy
                return self.conv1(x)
            return super().forward(x)

    model = liven(Asks())
    fused = cnnfast.fuse(copy.deepcopy(model), IMAGE)
    assert "its graph gives other values than its forward" in fused.report().notes[0]
    torch.testing.assert_close(fused.train()(IMAGE), model.train()(IMAGE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "reason"),
    [(nn.BatchNorm2d(4), "more than one value per channel"), (nn.Conv2d(4, 2, 3), "is larger than input")],
)
def test_an_example_that_training_refuses_tells_nothing(head, reason):
    """Batch statistics of one value, and a kernel larger than the image."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 8), head

        def forward(self, x):
            y = self.conv(x)
            return self.head(y) if self.training else y * 2

    model, one = Net(), IMAGE[:1, :, :, :8]
    fused = cnnfast.fuse(model, one, verify=True)
    notes = fused.report().notes
    assert "Net: its path of training was not checked, which refuses the example" in notes[0]
    assert not any("keeps its own forward" in note for note in notes)
    torch.testing.assert_close(fused.eval()(one), model.eval()(one), rtol=1e-4, atol=1e-5)
    with pytest.raises((RuntimeError, ValueError), match=reason):
        fused.train()(one)


def test_copies_pickles_scripts_and_the_way_back():
    model = liven(Auxiliary())
    fused = cnnfast.fuse(model, IMAGE, verify=True)
    for made in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        eager = copy.deepcopy(model)
        for mode in (True, False):
            wanted = auxiliary_sum(eager.train(mode), IMAGE)
            torch.testing.assert_close(auxiliary_sum(made.train(mode), IMAGE), wanted)
    back = fused.unfuse()
    assert type(back) is Auxiliary and list(back.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(back.eval()(IMAGE), model.eval()(IMAGE), rtol=0, atol=0)

    block = liven(Block())
    scripted = torch.jit.script(cnnfast.fuse(copy.deepcopy(block)))
    for mode in (True, False):
        wanted = block.train(mode)(IMAGE)
        torch.testing.assert_close(scripted.train(mode)(IMAGE), wanted, rtol=1e-4, atol=1e-5)


def test_swallowed_layers_and_settings_read_by_either_path_are_guarded():
    fused = cnnfast.fuse(Block())
    with pytest.raises(RuntimeError, match="fused with the layers around it"):
        fused.bn2 = nn.Identity()
    with pytest.raises(RuntimeError, match="'keep' was read when the forward was fused"):
        fused.keep = 0.5


def test_torch_compile_takes_both_modes():
    model = liven(Block())
    fused = cnnfast.fuse(copy.deepcopy(model))
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    for mode in (True, False):
        fused.train(mode)
        torch.testing.assert_close(compiled(IMAGE), model.train(mode)(IMAGE), rtol=1e-4, atol=1e-5)


def test_one_name_for_two_things_in_the_two_graphs():
    shells = importlib.import_module("cnnfast.fuse.shells")
    one, two = namedtuple("Pair", "a b"), namedtuple("Pair", "x y")
    source = "\n\n\ndef forward(self, x, y):\n    return Pair(x, y)\n"
    made, names = shells.source_of_two((source, {"Pair": one}), (source, {"Pair": two}), ["x", "y"])
    namespace = dict(names)
    exec(made, namespace)
    for training, kind in ((True, one), (False, two)):
        result = namespace["forward"](nn.Identity().train(training), 1, 2)
        assert type(result) is kind and tuple(result) == (1, 2)
