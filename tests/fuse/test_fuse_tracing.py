"""Forwards that cannot be written down as a graph: what is inside them is fused, they themselves stay."""

import torch
from torch import nn

import cnnfast

from .tracing_support import IMAGE, Stack, check


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


def test_fuse_optional_argument():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = Stack()

        def forward(self, x, mask=None):
            x = self.a(x)
            return x if mask is None else x * mask

    for inputs in ((IMAGE,), (IMAGE, torch.rand(2, 1, 8, 8))):
        assert "fused for calls with x, mask=None" in str(check(Net(), inputs))


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
