"""Forwards that cannot be written down as a graph: what is inside them is fused, they themselves stay."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast

from .support import check as check_steps
from .support import operators


class Stack(nn.Module):
    """A part that traces."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


IMAGE = torch.randn(2, 3, 8, 8)


def check(model, inputs=(IMAGE,)):
    model = model.eval()
    fused = cnnfast.fuse(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    for _ in range(2):
        torch.testing.assert_close(fused(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    assert type(fused.unfuse()) is type(model)
    return fused.report()


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Stack(), Stack()
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.last(self.a(x) if x.sum() > 0 else self.b(x))


def test_fuse_control_flow_fuses_children():
    report = check(ByValue())
    assert check(ByValue(), (-IMAGE.abs(),))["b.conv"].status == "fused"
    assert report["a.conv"].runs_as == "cnnfast.ops.conv2d_bn_act: a.conv + a.bn + relu"
    assert report["last"].status == "fused" and "values or sizes" in report.notes[0]
    assert "keeps its own forward" in str(report)


def test_fuse_control_flow_inside_leaves_the_rest():
    report = check(nn.Sequential(Stack(), ByValue(), nn.Conv2d(2, 2, 1), nn.ReLU()))
    assert not report.left_out and "values or sizes" in report.notes[0]
    assert report["2"].runs_as == "cnnfast.ops.conv2d: 2 + 3"


def test_fuse_branch_on_training_flag():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = Stack(), Stack()

        def forward(self, x):
            x = self.a(x)
            return self.head(x) if self.training else x * 2

    model = Net()
    assert check(model)["a.conv"].status == "fused"
    fused = cnnfast.fuse(model).train()
    torch.testing.assert_close(fused(IMAGE), model.train()(IMAGE), rtol=0, atol=1e-4)
    assert not fused.report().notes


def test_fuse_children_in_plain_lists_and_dicts():
    """They are called by the list or dict, which has to hold the fused ones."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Stack(), Stack()
            self.steps, self.by_name, self.again = [[self.a]], {"b": self.b}, (self.a,)
            self.first = self.a.forward

        def forward(self, x):
            x = self.by_name["b"](self.steps[0][0](x))
            return self.again[0](x) if x.sum() > 0 else self.first(x)

    model = Net().eval()
    report = check(model)
    assert report.coverage.layers == 1 and "values or sizes" in str(report)
    fused = cnnfast.fuse(model)
    assert fused.steps[0][0] is fused.a and fused.again[0] is fused.a and fused.by_name["b"] is fused.b
    assert model.steps[0][0] is model.a and fused.unfuse().steps[0][0].__class__ is Stack
    fused.a.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
    assert not torch.equal(fused(IMAGE), model(IMAGE))


def test_fuse_module_that_is_no_child():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.hidden = Stack(), [Stack()]

        def forward(self, x):
            return self.a(self.hidden[0](x))

    assert "not registered" in str(check(Net()))


def test_fuse_optional_argument_stays():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = Stack()

        def forward(self, x, mask=None):
            x = self.a(x)
            return x if mask is None else x * mask

    assert "optional argument (mask)" in str(check(Net()))
    check(Net(), (IMAGE, torch.rand(2, 1, 8, 8)))


def test_fuse_block_with_optional_argument_is_traced_from_outside():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, other=None):
            y = self.conv(x)
            return y if other is None else y + other

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Block(), Block()

        def forward(self, x):
            return self.b(self.a(x), x)

    report = check(Net())
    assert report["a.conv"].runs_as == "cnnfast.ops.conv2d: a.conv"
    assert report["b.conv"].runs_as == "cnnfast.ops.conv2d: b.conv + add"


def test_fuse_forward_that_counts_stays():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.calls = Stack(), 0

        def forward(self, x):
            self.calls += 1
            return self.a(x) * self.calls

    fused = cnnfast.fuse(Counting().eval())
    torch.testing.assert_close(fused(IMAGE) * 2, fused(IMAGE))
    assert "changes the module (attribute 'calls')" in str(fused.report())
    assert fused.report()["a.conv"].status == "fused"


class Keeping(nn.Module):
    """A forward that writes somewhere, by the name of what it writes."""

    def __init__(self, what):
        super().__init__()
        self.a, self.what, self.kept, self.named = Stack(), what, [[]], {"calls": 0}
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        y = self.a(x)
        if self.what == "kept":
            self.kept[0].append(y)
        elif self.what == "named":
            self.named["calls"] += 1
        elif self.what == "mean":
            self.mean = 0.9 * self.mean + y.detach().mean((0, 2, 3))
        elif self.what == "last":
            self.a.conv.last = y
        return y * (1 + self.mean.view(-1, 1, 1))


@pytest.mark.parametrize("what", ["kept", "named", "mean", "last"])
def test_fuse_forward_that_writes_into_the_module_stays(what):
    model, eager = Keeping(what).eval(), Keeping(what).eval()
    eager.load_state_dict(model.state_dict())
    fused = cnnfast.fuse(model)
    assert model.kept == [[]] and model.named == {"calls": 0}, "tracing wrote into the user's module"
    assert f"changes the module (attribute '{what}')" in str(fused.report())
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fused(IMAGE), eager(IMAGE), rtol=0, atol=1e-5)
    assert fused.named == eager.named and len(fused.kept[0]) == len(eager.kept[0])
    torch.testing.assert_close(fused.mean, eager.mean)
    assert hasattr(fused.a.conv, "last") == (what == "last")


def test_fuse_buffer_written_in_place_is_written():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = Stack()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.a(x) * self.calls

    fused = cnnfast.fuse(Counting().eval())
    assert fused.report().coverage.layers == 1 and not fused.report().notes
    torch.testing.assert_close(fused(IMAGE) * 2, fused(IMAGE))


def test_fuse_forward_that_draws_stays():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = Stack()

        def forward(self, x):
            return self.a(x) * torch.rand(1)

    fused = cnnfast.fuse(Noisy().eval())
    assert not torch.equal(fused(IMAGE), fused(IMAGE))
    assert "register it as a buffer" in str(fused.report())


def test_fuse_buffers_are_read_at_run_time():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.register_buffer("scale", torch.ones(1))

        def forward(self, x):
            return self.conv(x) * (self.scale * 2)

    fused = cnnfast.fuse(Scaled())
    before = fused(IMAGE)
    fused.scale.fill_(3)
    torch.testing.assert_close(fused(IMAGE), before * 3)


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


def test_fuse_unused_layer_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 1, 1)

        def forward(self, x):
            return self.used(x)

    assert check(Net())["unused"].reason == "the forward does not call it"


def test_fuse_single_layer_as_network():
    (row,) = check(nn.Conv2d(3, 4, 3)).rows
    assert row.status == "eager" and "nn.Sequential" in row.reason
    (row,) = check(cnnfast.nn.ConvBNReLU2d(3, 4, 3)).rows
    assert row.status == "already fused"


def test_fuse_attribute_whose_name_ends_in_training():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.register_buffer("pretraining", torch.ones(2, 3, 8, 8))

        def forward(self, x):
            return self.conv(x) + self.pretraining

    assert check(Net())["conv"].runs_as.endswith("conv + add")


class Viewing(nn.Module):
    """A forward that stays and takes for granted that images lie in rows."""

    def __init__(self):
        super().__init__()
        self.a, self.b = Stack(), Stack()

    def forward(self, x):
        x = self.a(x)
        if x.sum() > -1e9:
            x = x.view(x.size(0), 3, -1)
        return x


def test_fuse_layout_for_forwards_that_stay():
    """Fused calls give channels_last tensors, on which x.view fails."""
    check(Viewing())
    check(nn.Sequential(Stack(), Viewing()))
    check(nn.Sequential(Stack(), nn.Dropout(), Viewing(), nn.Flatten()))
    check(nn.Sequential(Stack(), ViewingNorm(3)))


class ViewingNorm(nn.InstanceNorm2d):
    def forward(self, x):
        return super().forward(x).view(-1) + x.view(-1)


SETS_ATTRIBUTES = {
    "data": lambda net: net.conv.weight.data.__imul__(net.mask),
    "assigned": lambda net: setattr(net.conv.weight, "data", net.conv.weight.data * net.mask),
    "augmented": lambda net: mask_weight(net),
}


def mask_weight(net):
    net.conv.weight.data *= net.mask


@pytest.mark.parametrize("how", SETS_ATTRIBUTES)
def test_fuse_weights_masked_in_the_forward(how):
    """As autoregressive convolutions are often written."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.register_buffer("mask", torch.ones(3, 3, 3, 3).tril())

        def forward(self, x):
            SETS_ATTRIBUTES[how](self)
            return F.relu(self.conv(x))

    model = Net().eval()
    fused = cnnfast.fuse(copy.deepcopy(model))
    got = fused(IMAGE)
    torch.testing.assert_close(got, model(IMAGE), rtol=0, atol=1e-5)
    assert torch.equal(fused.conv.weight, model.conv.weight)
    frozen_of = copy.deepcopy(model)
    torch.nn.init.ones_(frozen_of.conv.weight)
    wanted = copy.deepcopy(frozen_of)(IMAGE)
    if cnnfast._ext.AVAILABLE:
        frozen = cnnfast.freeze(frozen_of, IMAGE, allow_eager=True)
        torch.testing.assert_close(frozen(IMAGE), wanted, rtol=0, atol=1e-5)


def rows(y):
    return y.view(y.size(0), -1)


WRITES_INTO_VIEWS = {
    "view": lambda y: y.view(-1).relu_(),
    "reshape": lambda y: y.reshape(y.size(0), -1).mul_(2),
    "flatten": lambda y: torch.flatten(y, 1)[:, :5].zero_(),
    "contiguous": lambda y: y.contiguous().add_(1),
    "view_of_a_view": lambda y: rows(y)[:, :10].zero_(),
    "groups": lambda y: y.view(y.size(0), 3, 1, 8, 8)[:, 1].mul_(2),
}


@pytest.mark.parametrize("name", WRITES_INTO_VIEWS)
def test_fuse_view_with_write_in_place(name):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            y = self.conv(x)
            WRITES_INTO_VIEWS[name](y)
            return y * 2

    assert check(Net())["conv"].status == "fused"


def test_fuse_strides_in_a_forward():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            y = self.conv(x)
            return torch.as_strided(y, (2, 3, 4, 4), (192, 64, 8, 1)) * y.stride(1), rows(y)

    assert check(Net())["conv"].status == "fused"


def test_fuse_part_without_gradients_stays():
    """What a graph does not write down is kept by keeping the forward."""

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Stack()

        def forward(self, x):
            with torch.no_grad():
                return self.body(x)

    model = nn.Sequential(Frozen(), Stack())
    report = check(model)
    assert report["0.body.conv"].status == report["1.conv"].status == "fused"
    assert "the recording of gradients on or off" in str(report)
    fused = cnnfast.fuse(model.train())
    fused(IMAGE).sum().backward()
    assert fused[0].body.conv.weight.grad is None and fused[1].conv.weight.grad is not None


def test_fuse_part_under_autocast_stays():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Stack()

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.body(x)

    model = nn.Sequential(Stack(), Half()).eval()
    fused = cnnfast.fuse(model)
    assert fused(IMAGE).dtype == model(IMAGE).dtype == torch.bfloat16
    assert "turns autocast on or off" in str(fused.report())


def test_fuse_graph_module():
    """A network that was traced before: copies of it write its forward anew, and stay fused."""
    model = torch.fx.symbolic_trace(nn.Sequential(Stack(), Stack()))
    fused = cnnfast.fuse(model)
    assert fused.report()["0.conv"].status == "fused"
    torch.testing.assert_close(fused(IMAGE), model(IMAGE), rtol=0, atol=1e-5)
    copied = copy.deepcopy(fused)
    weights = (network.get_parameter("0.conv.weight") for network in (copied, fused))
    assert type(copied) is type(fused) and next(weights) is not next(weights)
    around = nn.Sequential(model, nn.Conv2d(3, 2, 1)).eval()
    inside = cnnfast.fuse(around)
    assert inside.report()["0.0.conv"].status == "fused"
    scripted = torch.jit.script(inside)
    torch.testing.assert_close(scripted(IMAGE), around(IMAGE), rtol=0, atol=1e-5)
    model, copied = model.eval(), copied.eval()
    torch.testing.assert_close(copied(IMAGE), model(IMAGE), rtol=0, atol=1e-5)


def test_fuse_feature_extractor():
    """torchvision's have a graph for each mode, and take the one or the other in train()."""
    feature_extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = feature_extraction.create_feature_extractor(nn.Sequential(Stack(), Stack()), {"0": "a", "1": "b"})
    fused = cnnfast.fuse(model)
    assert fused.report()["0.conv"].status == "fused"
    for mode in (True, False, True):
        wanted, got = copy.deepcopy(model).train(mode)(IMAGE), copy.deepcopy(fused).train(mode)(IMAGE)
        assert wanted.keys() == got.keys() == {"a", "b"}
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    dropping = nn.Sequential(Stack(), Drops(), Stack())
    model = feature_extraction.create_feature_extractor(dropping, {"2": "out"})
    fused = cnnfast.fuse(model).eval()
    assert "for training and for evaluation, which differ" in str(fused.report())
    assert not torch.equal(model(IMAGE)["out"], model(IMAGE)["out"])  # the original still drops
    wanted = fused.unfuse()(input=IMAGE)
    torch.testing.assert_close([fused(IMAGE), fused(input=IMAGE)], [wanted, wanted], rtol=0, atol=1e-5)


class Drops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


def test_fuse_counts_beside_scripted_parts():
    model = nn.Sequential(Stack(), torch.jit.script(Stack().eval()), Stack()).eval()
    fused = cnnfast.fuse(model, IMAGE, verify=True)
    assert fused.report()["0.conv"].macs == 2 * 3 * 3 * 9 * 64
    torch.testing.assert_close(fused(IMAGE), model(IMAGE), rtol=0, atol=1e-5)


class Switched(nn.Module):
    """A module that calls another of its methods as its forward from the beginning on."""

    def __init__(self, fast):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        if fast:
            self.forward = self.forward_fast

    def forward(self, x):
        return torch.sigmoid(self.conv(x))

    def forward_fast(self, x):
        return torch.relu(self.norm(self.conv(x)))


def test_a_method_of_its_own_as_forward():
    torch.manual_seed(0)
    model = nn.Sequential(Switched(True), Switched(False))
    fused = check_steps(model)
    found = operators(fused)
    assert found == {"0.conv": "conv2d_bn_act", "1.conv": "conv2d"}
    other = copy.deepcopy(fused).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    model = fused.unfuse()
    assert torch.equal(model(IMAGE), copy.deepcopy(model)(IMAGE)) and model[0].forward.__self__ is model[0]
    torch.testing.assert_close(other(IMAGE), other.unfuse()(IMAGE), rtol=1e-4, atol=1e-5)
    frozen = cnnfast.freeze(fused.eval(), IMAGE, strict=True)
    torch.testing.assert_close(frozen(IMAGE), fused(IMAGE), rtol=1e-4, atol=1e-5)
    assert "forward was replaced on the instance" in cnnfast.fuse(Switched(True)).report().notes[0]


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


class Walks(nn.Module):
    def __init__(self, walk):
        super().__init__()
        self.body, self.walk = nn.Sequential(*Stack().children(), nn.ReLU()), walk

    def forward(self, x, *args):
        return self.walk(self, x)


class WalksByLoop(Walks):
    def forward(self, x, *args):
        for layer in self.body:
            x = layer(x)
        return x


class WalksByIndex(Walks):
    def forward(this, x, *args):
        return this._inner(x)

    def _inner(that, x):
        for i in range(len(that.body)):
            x = that.body[i](x)
        return x


class WalksByItems(Walks):
    def forward(self, x, *args):
        layers = [layer for _, layer in self.body.named_children()]
        for layer in layers:
            x = layer(x)
        return x


class WalksAndCalls(Walks):
    def forward(self, x, *args):
        return self.body(x) + sum(p.sum() for layer in self.body for p in layer.parameters())


@pytest.mark.parametrize("cls", [WalksByLoop, WalksByIndex, WalksByItems, WalksAndCalls])
def test_fuse_layers_that_a_forward_walks_through(cls):
    """Layers of a Sequential that is never called are fused one by one; a report names no other."""
    report = check(cls(None))
    runs_as = report["body.0"].runs_as
    if cls is WalksAndCalls:
        assert runs_as == "cnnfast.ops.conv2d_bn_act: body.0 + body.1 + body.2"
    else:
        assert runs_as == "cnnfast.ops.conv2d: body.0" and report["body.1"].status == "eager"


class Halves(nn.Module):
    """Gives two values of which the second may be None."""

    def __init__(self, second):
        super().__init__()
        self.conv, self.other = Stack(), Stack() if second else None

    def forward(self, x):
        if x.sum() > 1e9:  # keeps this forward
            return x, x
        return self.conv(x), self.other(x) if self.other is not None else None


class AsksForNone(nn.Module):
    def __init__(self):
        super().__init__()
        self.both, self.one, self.last = Halves(True), Halves(False), Stack()

    def forward(self, x):
        a, b = self.both(x)
        c, d = self.one(x)
        a = a + b if b is not None else a
        return self.last(a + c + d if d is not None else a + c)


def test_fuse_with_an_example_finds_what_a_graph_does_not_tell():
    """`d is not None` holds for whatever stands for d while tracing."""
    model = AsksForNone().eval()
    fused = cnnfast.fuse(model, IMAGE)
    torch.testing.assert_close(fused(IMAGE), model(IMAGE))
    report = fused.report()
    assert "keeps its own forward: its graph does not run (TypeError" in report.notes[0]
    assert report["last.conv"].runs_as == "cnnfast.ops.conv2d_bn_act: last.conv + last.bn + relu"


class DropsWhereSmall(nn.Module):
    """Runs either way; the graph has the wrong one."""

    def __init__(self):
        super().__init__()
        self.part, self.stack = Halves(False), Stack()

    def forward(self, x):
        return self.stack(x) * (2 if self.part(x)[1] is not None else 1)


def test_fuse_with_an_example_compares_values():
    model = nn.Sequential(DropsWhereSmall(), nn.Conv2d(3, 2, 1)).eval()
    fused = cnnfast.fuse(model, IMAGE)
    torch.testing.assert_close(fused(IMAGE), model(IMAGE))
    assert any("other values than its forward" in note for note in fused.report().notes)
