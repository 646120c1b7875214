"""Loops in forwards: over layers that they hold, and over the pieces of a tensor."""

import pytest
import torch
from torch import nn

import cnnfast

from .tracing_support import IMAGE, Stack, check


def test_fuse_module_list_dict_and_several_outputs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = nn.ModuleList([Stack(), Stack()])
            self.heads = nn.ModuleDict({"a": nn.Conv2d(3, 1, 1), "b": nn.Conv2d(3, 2, 1)})

        def forward(self, x):
            for step in self.steps:
                x = step(x)
            return {name: head(x) for name, head in self.heads.items()}

    report = check(Net())
    assert not report.left_out and report["heads.b"].status == "fused"


class Pieces(nn.Module):
    def __init__(self, cut):
        super().__init__()
        self.first, self.last, self.cut = Stack(), Stack(), cut

    def forward(self, x):
        x = self.first(x)
        return self.last(sum(piece.tanh() for piece in self.cut(x)) + x)


CUTS = {
    "chunk": lambda x: x.chunk(3, 1),
    "function": lambda x: torch.chunk(x, chunks=3, dim=-3),
    "list": lambda x: list(torch.split(x, [1, 1, 1], 1)),
    "sizes": lambda x: x.split_with_sizes((1, 1, 1), dim=1),
    "length": lambda x: [x.split((1, 2), 1)[0]] * len(x.split((1, 2), 1)),
}


@pytest.mark.parametrize("name", CUTS)
def test_fuse_loop_over_pieces(name):
    report = check(Pieces(CUTS[name]))
    assert report.coverage.layers == 1 and not report.notes
    scripted = torch.jit.script(cnnfast.fuse(Pieces(CUTS[name]).eval()))
    assert scripted(IMAGE).shape == IMAGE.shape


def test_fuse_loop_over_fewer_pieces_says_so():
    """Four pieces of three channels are three; eager PyTorch goes on with those."""
    fused = cnnfast.fuse(Pieces(lambda x: x.chunk(4, 1)).eval())
    with pytest.raises(RuntimeError, match="4 pieces of a tensor, as it was told to cut, and has 3"):
        fused(IMAGE)


@pytest.mark.parametrize("cut", [lambda x: x.chunk(2), lambda x: x.split(1), lambda x: x.unbind()])
def test_fuse_loop_over_pieces_by_size_stays(cut):
    """How many there are depends on the batch, or on what no graph says."""
    report = check(Pieces(cut))
    assert "loops over a tensor" in report.notes[0] and report["first.conv"].status == "fused"


def stays(x):
    """A forward that calls it keeps its own code."""
    return x if x.sum() < 1e9 else -x


class Walks(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*Stack().children(), nn.ReLU())


class WalksByLoop(Walks):
    def forward(self, x):
        stays(x)
        for layer in self.body:
            x = layer(x)
        return x


class WalksByIndex(Walks):
    def forward(this, x):
        return this._inner(stays(x))

    def _inner(that, x):
        for i in range(len(that.body)):
            x = that.body[i](x)
        return x


class WalksByItems(Walks):
    def forward(self, x):
        stays(x)
        layers = [layer for _, layer in self.body.named_children()]
        for layer in layers:
            x = layer(x)
        return x


class WalksAndCalls(Walks):
    def forward(self, x):
        return self.body(stays(x)) + sum(p.sum() for layer in self.body for p in layer.parameters())


@pytest.mark.parametrize("cls", [WalksByLoop, WalksByIndex, WalksByItems, WalksAndCalls])
def test_fuse_layers_that_a_forward_walks_through(cls):
    """Layers of a Sequential that is never called are fused one by one; a report names no other."""
    report = check(cls())
    runs_as = report["body.0"].runs_as
    if cls is WalksAndCalls:
        assert runs_as == "cnnfast.ops.conv2d_bn_act: body.0 + body.1 + body.2"
    else:
        assert runs_as == "cnnfast.ops.conv2d: body.0" and report["body.1"].status == "eager"
