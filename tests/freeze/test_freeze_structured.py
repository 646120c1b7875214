"""Inputs and results of frozen networks: several, and tuples, lists, dicts and classes of tensors."""

import copy
import pickle
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast
from cnnfast.freeze import EagerNet
from cnnfast.plan.record import with_tensors

from .parts_support import IMAGE, Net, check, conv
from .support import assert_near, needs_extension

pytestmark = needs_extension


@pytest.mark.parametrize(
    "result",
    [
        lambda a, b: (a, b),
        lambda a, b: [a, (b, a)],
        lambda a, b: {"out": a, "aux": [b]},
        lambda a, b: OrderedDict(out=a, aux=b),
    ],
)
def test_structured_results(result):
    check(Net(lambda s, x: result(s.a(x), s.b(x)), a=conv(3, 4), b=nn.Sequential(conv(3, 4), nn.ReLU())))


Pair = namedtuple("Pair", "first second")


def test_results_as_a_named_tuple():
    frozen = check(Net(lambda s, x: Pair(s.a(x), F.softplus(s.a(x))), a=conv(3, 4)))
    assert isinstance(frozen(IMAGE), Pair)


@dataclass
class Output(OrderedDict):
    """As networks of transformers and diffusers give: a dict whose items are fields too."""

    logits: torch.Tensor | None = None
    states: tuple | None = None

    def __post_init__(self):
        named = {"logits": self.logits, "states": self.states}
        self.update((name, value) for name, value in named.items() if value is not None)


@pytest.mark.parametrize("states", [False, True])
def test_results_with_named_fields(states):
    def function(s, x):
        a = s.a(x)
        return Output(F.softplus(s.b(a)), (a, x) if states else None)

    frozen = check(Net(function, a=conv(3, 4), b=conv(4, 4)))
    result = frozen(IMAGE)
    assert type(result) is Output and list(result) == ["logits", "states"][: 1 + states]
    assert torch.equal(result.logits, result["logits"]) and (result.states is None) is not states


def test_results_with_named_fields_are_a_dict_in_torchscript():
    model = Net(lambda s, x: Output(F.softplus(s.b(s.a(x)))), a=conv(3, 4), b=conv(4, 4)).eval()
    frozen = cnnfast.freeze(model, IMAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(frozen)
    result = scripted(IMAGE)
    assert type(result) is dict and list(result) == ["logits"]
    assert torch.equal(result["logits"], frozen(IMAGE).logits)
    again = pickle.loads(pickle.dumps(frozen))
    assert type(again(IMAGE)) is Output and torch.equal(again(IMAGE).logits, frozen(IMAGE).logits)


class Named(dict):
    pass


def test_results_in_a_dict_of_their_own_kind():
    """The forward that makes one stays."""
    block = Net(lambda s, x: s.b(F.relu(s.a(x))), a=conv(3, 4), b=conv(4, 4))
    frozen = check(Net(lambda s, x: Named(out=s.block(x)), block=block), kind=EagerNet)
    assert any("a dict of a kind of its own" in note for note in frozen.report().notes)
    assert frozen.report()["block.a"].status == "fused"


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(3, 8), conv(4, 8)

        def forward(self, x, y, scale=None):
            u = torch.relu(self.a(x)) + self.b(y)
            return u if scale is None else u * scale

    frozen = check(Two(), IMAGE, torch.randn(2, 4, 12, 10), plans=1)
    assert not frozen.report().left_out
    cnnfast.freeze(Two().eval(), (IMAGE, torch.randn(2, 4, 12, 10)), strict=True)
    check(Two(), IMAGE, torch.randn(2, 4, 12, 10), torch.randn(2, 8, 12, 10))


class Arguments(nn.Module):
    """Images in whatever the forward takes them from."""

    def __init__(self, take):
        super().__init__()
        self.take, self.a, self.b = take, conv(3, 4), conv(3, 4)

    def forward(self, images):
        x, y, scale = self.take(images)
        return F.relu(self.a(x)) * scale + self.b(y)


@pytest.mark.parametrize(
    ("images", "take"),
    [
        ({"x": IMAGE, "more": [IMAGE.flip(0), 2.0]}, lambda d: (d["x"], d["more"][0], d["more"][1])),
        ([IMAGE, (IMAGE.flip(0), 0.5)], lambda v: (v[0], v[1][0], v[1][1])),
    ],
    ids=["dict", "list"],
)
def test_structured_inputs(images, take):
    torch.manual_seed(0)
    model = Arguments(take).eval()
    frozen = cnnfast.freeze(model, (images,), verify=True, error_budget=1e-4)
    with torch.no_grad():
        assert_near(frozen(images), copy.deepcopy(model)(images).double())
    assert frozen.report()["a"].status == frozen.report()["b"].status == "fused"
    tracked = with_tensors(lambda x: x.clone().requires_grad_(), images)
    with pytest.raises(RuntimeError, match="no gradients"):
        frozen(tracked)


def test_inputs_without_tensors_are_refused():
    with pytest.raises(ValueError, match=r"must have a tensor, it has \(dict, int\)"):
        cnnfast.freeze(conv(3, 4), ({"x": [1.0]}, 3))
