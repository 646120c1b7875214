"""Forwards with optional arguments, or that decide by sizes: graphs for some calls, forwards for others."""

import copy
import pickle
import warnings
from typing import Optional

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import profile

import cnnfast

from .networks import liven
from .support import IMAGE, operators

MASK = torch.rand(2, 4, 8, 9, generator=torch.Generator().manual_seed(8))


class Masked(nn.Module):
    """A block of diffusers' kind: an optional tensor, and whatever else is given."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.last = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x, mask=None, scale=1.0, *args, **kwargs):
        if len(args) > 0 or kwargs.get("negative"):
            return -self.last(self.conv1(x))
        y = F.relu(self.bn(self.conv1(x)))
        if mask is not None:
            y = y + mask
        if scale != 1.0:
            y = y * scale
        return self.last(F.relu(self.conv2(y) + y))


CALLS = [
    ((IMAGE,), {}),
    ((IMAGE, MASK), {}),
    ((IMAGE,), {"mask": MASK}),
    ((), {"x": IMAGE, "mask": MASK, "scale": 0.5}),
    ((IMAGE, None, 2), {}),
    ((IMAGE, MASK, 1.0, 3), {}),
    ((IMAGE,), {"negative": True}),
]


def compare_calls(fused, model, calls=CALLS):
    """Values and gradients of both in both modes."""
    for args, kwargs in calls:
        for mode in (True, False):
            results = []
            for net in (fused.train(mode), model.train(mode)):
                y = net(*args, **kwargs)
                y.square().sum().backward()
                results.append([y.detach(), *(p.grad for p in net.parameters() if p.grad is not None)])
                net.zero_grad()
            for got, wanted in zip(*results, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * results[1][0].abs().max())


def operators_called(call):
    with profile() as seen:
        call()
    return [event.name for event in seen.events() if event.name.startswith(("cnnfast::", "aten::relu"))]


@pytest.mark.parametrize("example", [None, (IMAGE,), (IMAGE, MASK), (IMAGE, MASK, 0.5)])
def test_every_call_gives_what_the_forward_gives(example):
    model = liven(Masked())
    fused = cnnfast.fuse(copy.deepcopy(model), example, verify=example is not None)
    assert operators(fused)["conv1"] == "conv2d_bn_act" and fused.report().coverage.layers == 1
    compare_calls(fused, model)


def test_the_report_says_which_calls():
    without = cnnfast.fuse(Masked()).report().notes
    given = cnnfast.fuse(Masked(), (IMAGE, MASK)).report().notes
    assert "Masked is fused for calls with x, mask=None, scale=1.0; others run its own forward" in without[0]
    assert "Masked is fused for calls with x (Tensor), mask (Tensor), scale=1.0; others" in given[0]


def test_other_calls_run_layers_by_their_operators():
    fused = cnnfast.fuse(liven(Masked()), (IMAGE, MASK)).eval()
    with torch.no_grad():
        served, others = (
            operators_called(lambda args=args: fused(*args)) for args in ((IMAGE, MASK), (IMAGE,))
        )
    assert served.count("cnnfast::conv2d") == others.count("cnnfast::conv2d") == 3
    assert "aten::relu" not in served and others.count("aten::relu") == 2


def test_flags_words_and_keywords():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x, features: bool = False, *, kind: str = "mean", times: int = 1):
            y = F.relu(self.bn(self.conv(x)))
            y = y.mean((2, 3)) if kind == "mean" else y.amax((2, 3))
            return y if features else self.head(y) * times

    model = liven(Net())
    calls = [
        ((IMAGE,), {}),
        ((IMAGE, True), {}),
        ((IMAGE, 1), {}),
        ((IMAGE,), {"kind": "max"}),
        ((IMAGE,), {"times": 2}),
        ((IMAGE,), {"kind": "max", "features": True}),
    ]
    fused = cnnfast.fuse(copy.deepcopy(model))
    assert operators(fused) == {"conv": "conv2d_bn_act", "mean": "global_avg_pool2d", "head": "linear"}
    compare_calls(fused, model, calls)
    with pytest.raises(TypeError, match="kinds"):
        fused(IMAGE, kinds="max")


def test_arguments_that_are_named_as_functions():
    class Net(Masked):
        def forward(self, len, /, type=None, list: int = 2, *, isinstance="mean", **given_by):
            y = F.relu(self.bn(self.conv1(len))) * list
            y = y if type is None else y + type
            return self.conv2(y if isinstance == "mean" else -y)

    model = liven(Net())
    calls = [
        ((IMAGE,), {}),
        ((IMAGE, MASK), {"isinstance": "sum"}),
        ((IMAGE,), {"type": MASK, "list": 3}),
        ((IMAGE, None, 2.0), {"other": 1}),
    ]
    for example in (None, (IMAGE, MASK)):
        fused = cnnfast.fuse(copy.deepcopy(model), example)
        assert operators(fused)["conv1"] == "conv2d_bn_act"
        compare_calls(fused, copy.deepcopy(model), calls)


class Skips(nn.Module):
    """A U-Net's step up: it takes a list of values, and pads the smaller one."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.up = Up()
        self.head = nn.Conv2d(7, 2, 1)

    def forward(self, x):
        skips = [x, self.down(x)]
        return self.head(self.up(skips[-1], skips[:-1]))


class Up(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x, skips, upsample_size=None):
        skip = skips[-1]
        x = F.relu(self.bn(self.conv(F.interpolate(x, scale_factor=2.0))))
        if x.shape[-1] != skip.shape[-1]:
            x = x[..., : skip.shape[-1]]
        return torch.cat((x, skip), dim=1)


def test_decisions_by_size_hold_for_the_sizes_of_the_example():
    """IMAGE has nine columns; the graph is for odd numbers of them, others run the forward."""
    model = liven(Skips())
    alone = cnnfast.fuse(copy.deepcopy(model))
    assert "decides by the values or sizes" in alone.report().notes[0]
    fused = cnnfast.fuse(copy.deepcopy(model), IMAGE, verify=True)
    assert (
        "'up' (Up) is fused for calls with x (Tensor), skips (list), upsample_size=None and"
        in fused.report().notes[0]
    )
    assert operators(fused)["up.conv"] == "conv2d_bn_act" and fused.report().coverage.layers == 1
    images = [((torch.randn(2, 3, *size),), {}) for size in ((8, 9), (8, 8), (12, 11), (6, 10))]
    for net in (alone, fused):
        compare_calls(net, copy.deepcopy(model), images)
    with torch.no_grad():
        odd = operators_called(lambda: fused.eval()(torch.randn(1, 3, 4, 5)))
        even = operators_called(lambda: fused(torch.randn(1, 3, 4, 6)))
    assert "aten::relu" not in odd and even.count("aten::relu") == 1


def test_a_list_of_values_counts_as_so_many():
    model = liven(Up())
    skip = torch.randn(2, 3, 8, 9)
    x = torch.randn(2, 4, 4, 5)
    fused = cnnfast.fuse(copy.deepcopy(model), (x, [skip]))
    note = fused.report().notes[0]
    assert "Up is fused for calls with x (Tensor), skips (list), upsample_size=None and" in note
    calls = [((x, [skip]), {}), ((x, (skip,)), {}), ((x, [skip, skip]), {}), ((x, [skip[..., :8]], 3), {})]
    compare_calls(fused, model, calls)


class ByKey(Up):
    def forward(self, maps, scale=None):
        y = F.relu(self.bn(self.conv(maps["low"])))
        if maps.get("high") is not None:
            y = y + maps["high"]
        return y if scale is None else y * scale


def test_a_dict_counts_by_its_keys():
    model = liven(ByKey())
    low, high = torch.randn(2, 4, 8, 9), torch.randn(2, 4, 8, 9)
    calls = [
        (({"low": low, "high": high},), {}),
        (({"low": low},), {}),
        (({"low": low, "high": None}, 2), {}),
    ]
    for (example,), _ in calls[:2]:
        fused = cnnfast.fuse(copy.deepcopy(model), (example,), verify=True)
        compare_calls(fused, copy.deepcopy(model), calls)
    assert "is fused for calls with maps (dict), scale=None" not in fused.report().notes[0], "a missing key"
    fused = cnnfast.fuse(copy.deepcopy(model), ({"high": high, "low": low},))
    assert "is fused for calls with maps (dict), scale=None" in fused.report().notes[0]


def test_a_list_that_holds_other_things():
    class Net(Up):
        def forward(self, x, skips, scale=1):
            y = F.relu(self.bn(self.conv(x)))
            return (y if skips[0] is None else y + skips[0]) * scale

    model, x = liven(Net()), torch.randn(2, 4, 8, 9)
    calls = [((x, [x]), {}), ((x, [None]), {}), ((x, [None, x], 2), {}), ((x, (x,)), {"scale": 3})]
    for (x, skips, *_), _ in calls[:3]:
        compare_calls(cnnfast.fuse(copy.deepcopy(model), (x, skips)), copy.deepcopy(model), calls)


def test_both_a_mode_and_arguments():
    class Net(Masked):
        def forward(self, x, mask=None):
            if self.training:
                x = x * 2
            y = F.relu(self.bn(self.conv1(x)))
            return self.conv2(y if mask is None else y * mask)

    model = liven(Net())
    for example in (None, (IMAGE, MASK)):
        fused = cnnfast.fuse(copy.deepcopy(model), example)
        assert operators(fused)["conv1"] == "conv2d_bn_act"
        compare_calls(fused, model, CALLS[:3])


def test_copies_pickles_and_the_way_back():
    model = liven(Masked())
    fused = cnnfast.fuse(copy.deepcopy(model), (IMAGE, MASK))
    again = cnnfast.fuse(copy.deepcopy(fused), (IMAGE, MASK))
    for made in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), again):
        compare_calls(made, copy.deepcopy(model))
    back = fused.unfuse()
    assert type(back) is Masked and list(back.state_dict()) == list(model.state_dict())
    assert all(type(part) is type(other) for part, other in zip(back.modules(), model.modules(), strict=True))
    for args, kwargs in CALLS:
        torch.testing.assert_close(
            back.eval()(*args, **kwargs), model.eval()(*args, **kwargs), rtol=0, atol=0
        )


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> torch.Tensor:  # noqa: UP045
        y = F.relu(self.bn(self.conv(x)))
        if mask is not None:
            y = y * mask
        return self.last(y)


@pytest.mark.parametrize("example", [None, (IMAGE, MASK)])
def test_scripts_traces_and_compiles(example):
    model = liven(Scripted())
    fused = cnnfast.fuse(copy.deepcopy(model), example)
    scripted = torch.jit.script(fused)
    compiled = torch.compile(fused, backend="eager")
    for mode in (True, False):
        for net in (model, fused, scripted):
            net.train(mode)
        for args in ((IMAGE,), (IMAGE, MASK)):
            for made in (scripted, compiled):
                torch.testing.assert_close(made(*args), model(*args), rtol=1e-4, atol=1e-5)
    traced = torch.jit.trace(fused.eval(), (IMAGE, MASK))
    torch.testing.assert_close(traced(IMAGE, MASK), model.eval()(IMAGE, MASK), rtol=1e-4, atol=1e-5)
    exported = torch.export.export(fused, (IMAGE, MASK)).module()
    torch.testing.assert_close(exported(IMAGE, MASK), model(IMAGE, MASK), rtol=1e-4, atol=1e-5)


def test_hooks_added_later_run():
    """Where there is a forward that calls the layer it runs from then on, at any depth."""
    model = liven(Masked())
    fused, seen = cnnfast.fuse(model, (IMAGE,)).eval(), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for made in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
            for layer in (made.conv1, made.last):
                layer.register_forward_hook(lambda layer, args, result: seen.append(type(layer).__mro__[1]))
            torch.testing.assert_close(made(IMAGE), model.eval()(IMAGE), rtol=1e-4, atol=1e-5)
    assert len(seen) == 6
    with pytest.warns(RuntimeWarning, match="its hooks do not run"):
        fused.last[0].register_forward_hook(lambda layer, args, result: None)


def test_other_layers_and_other_values_are_followed():
    class Net(Masked):
        def __init__(self):
            super().__init__()
            self.times = 2

        def forward(self, x, mask=None):
            return super().forward(x, mask) * self.times

    model = liven(Net())
    for change in (
        lambda net: setattr(net, "times", 3),
        lambda net: setattr(net, "bn", nn.GroupNorm(2, 4)),
        lambda net: net.add_module("conv2", nn.Conv2d(4, 4, 3, padding=1, bias=False)),
        lambda net: delattr(net, "times") or setattr(net, "times", 1),
    ):
        fused = cnnfast.fuse(copy.deepcopy(model))
        for net in (fused, wanted := copy.deepcopy(model)):
            torch.manual_seed(5)
            change(net)
        compare_calls(fused, wanted, CALLS[:2])
    fused = cnnfast.fuse(copy.deepcopy(model)).eval()
    fused.times, fused.conv1 = 2, nn.Conv2d(3, 4, 3, padding=1)
    assert "aten::relu" not in operators_called(lambda: fused(IMAGE)), "the graph serves these as well"
    with pytest.raises(RuntimeError, match="is fused with the layers around it"):
        fused.last[0] = nn.Identity()


def test_a_library_knows_the_class_by_its_name():
    """transformers looks up what a network can give besides its result by str(type(network))."""
    fused = cnnfast.fuse(Masked())
    assert str(type(fused)) == str(Masked) and type(fused).__name__ == "FusedMasked"


def test_what_nothing_can_be_told_of_stays():
    class Net(Masked):
        def forward(self, x, sizes=frozenset()):
            return self.last(self.conv1(x)) * (2 if 3 in sizes else 1)

    model = liven(Net())
    for example in (None, (IMAGE, frozenset({3}))):
        fused = cnnfast.fuse(copy.deepcopy(model), example)
        assert "its forward has an optional argument (sizes), a frozenset" in fused.report().notes[0]
        compare_calls(fused, model, [((IMAGE,), {}), ((IMAGE, {3}), {})])


def test_optional_arguments_alone_need_an_example():
    class Net(Masked):
        def forward(self, x=None):
            return self.last(self.conv1(x))

    fused = cnnfast.fuse(Net())
    assert "give fuse example_inputs" in fused.report().notes[0]
    assert cnnfast.fuse(Net(), IMAGE).report().coverage.layers == 1


def test_a_layer_of_another_place_stays_fused_there():
    """The forward of the first block runs layers that the second one's graph has, too."""
    model = nn.Sequential(Masked(), nn.Conv2d(4, 3, 1), Masked())
    model[2].conv1 = model[0].conv1
    fused = cnnfast.fuse(copy.deepcopy(liven(model)), IMAGE)
    compare_calls(fused, model, CALLS[:1])


def test_unlike_calls_of_one_block():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.back = Masked(), nn.Conv2d(4, 3, 1)

        def forward(self, x, times=2):
            y = self.block(x) if float(x.mean()) < 10 else x
            return self.block(self.back(y), mask=y)

    model = liven(Net())
    fused = cnnfast.fuse(copy.deepcopy(model), IMAGE, verify=True)
    notes = fused.report().notes
    assert "Net keeps its own forward" in notes[0] and "mask (Tensor), scale=1.0" in notes[1]
    compare_calls(fused, model, [((IMAGE,), {})])
