"""Networks that no single plan holds: plans joined by layers that stay eager."""

import copy
import pickle
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from fuse.networks import liven
from torch import nn

import cnnfast
from cnnfast.freeze import EagerNet, JoinedNet, UnsupportedNetworkError
from cnnfast.plan.record import tensors_in, with_tensors

from .support import assert_near, needs_extension

pytestmark = needs_extension
IMAGE = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """Layers by name, and a function of them and the inputs as the forward."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.function(self, x)


def conv(a, b, size=3, **options):
    return nn.Conv2d(a, b, size, padding=size // 2, **options)


def check(model, *inputs, kind=JoinedNet, plans=None):
    """The frozen network, behind a check of its values at two batch sizes against float64."""
    torch.manual_seed(0)
    model = liven(model).eval()
    inputs = inputs or (IMAGE,)
    frozen = cnnfast.freeze(model, inputs)
    assert isinstance(frozen, kind)
    assert plans is None or len(frozen.plans()) == plans
    double = copy.deepcopy(model).double()
    for batch in (inputs, tuple(torch.cat([x, x.flip(0)]) for x in inputs)):
        with torch.no_grad():
            wanted = double(*(x.double() for x in batch))
            got = frozen(*(x.clone() for x in batch))
        assert type(got) is type(wanted)
        for actual, right in zip(tensors_in(got), tensors_in(wanted), strict=True):
            assert_near(actual, right)
    return frozen


def test_eager_layer_between_plans():
    frozen = check(
        nn.Sequential(conv(3, 8), nn.ReLU(), nn.Softplus(), conv(8, 5), nn.BatchNorm2d(5)), plans=2
    )
    report = frozen.report()
    assert [row.name for row in report.left_out] == ["2"] and report["2"].type == "Softplus"
    assert "no node for it" in report["2"].reason
    assert report["3"].runs_as.startswith("plan 1, node 1: conv2d 8→5")
    assert report.coverage.multiply_adds == 1.0 and report.coverage.layers == pytest.approx(4 / 5)
    assert report["0"].macs == 2 * 8 * 3 * 9 * 12 * 10


def test_one_part_around_an_eager_branch():
    """Both operands of the sum are known only behind the eager branch; a third plan."""
    model = Net(lambda s, x: s.last(s.a(x) + F.softplus(s.b(x))), a=conv(3, 8), b=conv(3, 8), last=conv(8, 4))
    frozen = check(model, plans=3)
    assert [row.type for row in frozen.report().left_out] == ["softplus"]


def test_parts_do_not_read_what_comes_behind_them():
    """The first convolution is read on both sides of an eager layer: it must not run twice or too late."""

    def function(s, x):
        y = s.a(x)
        z = F.softplus(y)
        return s.b(y) + s.c(z) + s.d(torch.cat([y, z], 1))

    frozen = check(Net(function, a=conv(3, 4), b=conv(4, 4), c=conv(4, 4), d=conv(8, 4)))
    assert sum(text.count("conv2d 3→4") for text in map(str, frozen.plans().values())) == 1


def test_too_little_work_for_a_plan_stays_eager():
    model = nn.Sequential(conv(3, 4), nn.Softplus(), nn.ReLU(), nn.Softplus(), conv(4, 4))
    frozen = check(model, plans=2)
    assert "a plan of its own would cost more" in frozen.report()["2"].reason


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


def test_in_place_operations_keep_their_order():
    def function(s, x):
        y = s.a(x)
        z = F.softplus(y)  # eager, of the value before the writes
        y = y.relu_()
        w = s.b(y)
        y.clamp_(max=0.3)  # eager, in place
        return s.c(y) + z + w

    check(Net(function, a=conv(3, 4), b=conv(4, 4), c=conv(4, 4)))


def test_in_place_writes_into_the_input_of_an_eager_layer():
    def function(s, x):
        y = s.a(x)
        view = F.softplus(y)
        view.relu_()
        y += view
        return s.b(y), view

    check(Net(function, a=conv(3, 4), b=conv(4, 4)))


def test_in_place_write_that_a_view_reads_is_left_to_eager():
    def function(s, x):
        y = s.a(x)
        rows = y.flatten(2)
        y.relu_()
        return s.b(y), rows

    with pytest.raises(UnsupportedNetworkError, match="freeze: Net has layers"):
        cnnfast.freeze(Net(function, a=conv(3, 4), b=conv(4, 4)).eval(), IMAGE, strict=True)
    check(Net(function, a=conv(3, 4), b=conv(4, 4)), kind=EagerNet, plans=2)


def turned(x):
    return x.movedim(2, 3)


WRITES_INTO_VIEWS = {
    "transposed": lambda y: (turned(y).add_(torch.arange(y.shape[2])), y)[1],
    "overlapping": lambda y: (y[:, :3].mul_(2), y[:, 1:])[1],
    "sides_of_a_small_image": lambda y: (y[:, :, :12].mul_(2), y)[1],
    "first_image": lambda y: (y[:1].mul_(2), y)[1],
}


@pytest.mark.parametrize("name", WRITES_INTO_VIEWS)
@pytest.mark.parametrize("batch", [1, 2])
def test_in_place_writes_into_views_of_equal_shape(name, batch):
    """What has one shape for the example (square images, one image) need not be one view."""

    def function(s, x):
        y = torch.cumsum(s.a(x), 1)
        y = WRITES_INTO_VIEWS[name](y)
        return s.b(y[:, :3]) + y[:, -1:]

    model, x = Net(function, a=conv(3, 4), b=conv(3, 4)).eval(), torch.randn(batch, 3, 12, 12)
    frozen = cnnfast.freeze(model, x)
    for images in (x, torch.randn(3, 3, 12, 12), torch.randn(1, 3, 14, 14)):
        with torch.no_grad():
            assert_near(frozen(images), copy.deepcopy(model).double()(images.double()))


def test_in_place_write_beside_another_slice():
    def function(s, x):
        a, b = s.a(x).chunk(2, 1)
        a += F.softplus(b)
        return s.b(torch.cat([b, a], 1))

    check(Net(function, a=conv(3, 4), b=conv(4, 4)), kind=JoinedNet)


def test_views_behind_plans_and_sizes_of_inner_values():
    def function(s, x):
        y = s.a(x)
        n, c, h, w = y.shape
        z = y.view(n, c // 2, 2, h, w).flip(2).reshape(n, c, h, w)
        return s.b(z).view(n, -1)

    frozen = check(Net(function, a=conv(3, 4), b=conv(4, 4)))
    x = torch.randn(1, 3, 7, 9)
    assert frozen(x).shape == (1, 4 * 63)


class Decides(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if x.sum() < 1e9 else x


def test_module_whose_forward_cannot_be_traced_is_frozen_child_by_child():
    block = Decides(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 3)))
    frozen = check(nn.Sequential(conv(3, 3), nn.ReLU(), block, conv(3, 2)), plans=3)
    report = frozen.report()
    assert [row.name for row in report.left_out] == ["2"] and report.coverage.multiply_adds == 1.0
    assert "'2' (Decides) keeps its own forward: its forward decides by the values" in str(report)
    check(Decides(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 3))), kind=EagerNet, plans=1)
    frozen = check(Decides(conv(3, 3)), kind=EagerNet, plans=1)
    assert frozen.report()["inner"].status == "fused"


@pytest.mark.parametrize("first", ["eager", "planned"])
def test_forwards_that_stay_may_call_view(first):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.body = conv(3, 4), nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4))
            self.head = nn.Sequential(nn.Linear(4 * 120, 5), nn.ReLU())

        def forward(self, x):
            y = self.conv(x) if first == "eager" else self.body(self.conv(x))
            return x if y.sum() > 1e9 else self.head(y.view(y.size(0), -1))

    frozen = check(Views(), kind=EagerNet)
    assert frozen.report()["head.0"].status == "fused"


def test_networks_that_kept_values_of_training_freeze():
    class Keeps(Decides):
        def forward(self, x):
            self.kept = [x * 2]
            return super().forward(x)

    model = Keeps(nn.Sequential(conv(3, 4), nn.Softplus(), conv(4, 4)))
    model(IMAGE.clone().requires_grad_())
    assert model.kept[0].requires_grad
    frozen = cnnfast.freeze(model, IMAGE)
    with torch.no_grad():
        assert_near(frozen(IMAGE), model(IMAGE).double())


def test_children_whose_insides_are_read_stay_eager():
    class Peeks(Decides):
        def forward(self, x):
            return self.inner(x) * self.inner[0].weight.mean() if x.sum() < 1e9 else x

    model = nn.Sequential(conv(3, 3), nn.ReLU(), Peeks(nn.Sequential(conv(3, 8), nn.ReLU())))
    frozen = check(model, plans=1)
    assert "does not work with frozen children" in frozen.report()["2.inner.0"].reason
    assert 0 < frozen.report().coverage.multiply_adds < 1


def test_hooks_run_and_are_told_of():
    model = nn.Sequential(conv(3, 4), nn.Sequential(conv(4, 4), nn.ReLU()), conv(4, 4))
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    frozen = check(model, plans=2)
    assert "hooks" in frozen.report()["1.0"].reason


def test_eager_layers_are_a_snapshot():
    model = nn.Sequential(conv(3, 4), nn.PReLU(4), nn.ConvTranspose2d(4, 2, 2, dilation=2)).eval()
    frozen = cnnfast.freeze(model, IMAGE)
    wanted = frozen(IMAGE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(frozen(IMAGE), wanted)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen.train().training
    assert frozen.report()["2"].status == "eager" and frozen.report().coverage.multiply_adds < 1


def softplus_net():
    torch.manual_seed(1)
    return liven(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Softplus(), conv(8, 4), nn.Flatten())).eval()


def test_copies_and_programs():
    frozen = cnnfast.freeze(softplus_net(), IMAGE)
    wanted = frozen(IMAGE)
    assert torch.equal(pickle.loads(pickle.dumps(frozen))(IMAGE), wanted)
    assert torch.equal(copy.deepcopy(frozen)(IMAGE), wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(torch.jit.script(frozen)(IMAGE), wanted)
        assert torch.equal(torch.jit.trace(frozen, IMAGE)(IMAGE), wanted)
    assert torch.equal(torch.compile(frozen, fullgraph=True, backend="eager")(IMAGE), wanted)


@pytest.mark.parametrize(("format", "name"), [("torchscript", "net.pt"), ("pt2", "net.pt2")])
def test_export(format, name, tmp_path):
    frozen = cnnfast.freeze(softplus_net(), IMAGE)
    assert cnnfast.export(frozen, tmp_path / name, format=format, example_inputs=IMAGE).exists()


def test_refuses_what_it_cannot_do(tmp_path):
    frozen = cnnfast.freeze(softplus_net(), IMAGE)
    with pytest.raises(TypeError, match="2 plans joined by eager layers.*cnnfast.export"):
        frozen.save(tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="no gradients.*cnnfast.fuse"):
        frozen(IMAGE.clone().requires_grad_())
    with pytest.raises(TypeError, match="stays float32 on the CPU"):
        frozen.double()
    with pytest.raises(TypeError, match="frozen already"):
        cnnfast.freeze(frozen, IMAGE)
    with pytest.raises(UnsupportedNetworkError, match=r"2 \(Softplus\)"):
        cnnfast.freeze(softplus_net(), IMAGE, strict=True, allow_eager=True)


def test_options_reach_all_plans():
    model = softplus_net()
    assert "verified: error" in str(cnnfast.freeze(model, IMAGE, verify=True).report())
    direct = cnnfast.freeze(model, IMAGE, winograd=False)
    budget = cnnfast.freeze(model, IMAGE, error_budget=1e-3)
    assert "kept by Winograd tiles up to 6" in str(budget.report())
    torch.testing.assert_close(direct(IMAGE), budget(IMAGE), rtol=1e-3, atol=1e-4)


def test_empty_batch():
    frozen = cnnfast.freeze(softplus_net(), IMAGE)
    assert frozen(IMAGE[:0]).shape == (0, 4 * 120)


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


def test_images_of_bytes_are_converted_in_front_of_the_plan():
    """A plan reads float32: the call that makes it of bytes stays eager."""

    class Bytes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(3, 4)

        def forward(self, x):
            return F.relu(self.conv(x.float().div(255)))

    model, x = Bytes().eval(), (IMAGE.abs() * 100).to(torch.uint8)
    frozen = cnnfast.freeze(model, x)
    with torch.no_grad():
        assert_near(frozen(x.flip(0)), model(x.flip(0)).double())
    assert [row.name for row in frozen.report().left_out] == ["float_1"]
    with pytest.raises(UnsupportedNetworkError, match=r"x \(input\): it is torch.uint8"):
        cnnfast.freeze(model, x, strict=True)


def test_weights_that_a_forward_computes_are_constants_of_a_part():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)

    frozen = check(nn.Sequential(Standardised(3, 4, 3), nn.Softplus(), Standardised(4, 4, 3)), plans=2)
    assert [row.name for row in frozen.report().left_out] == ["1"]
    assert frozen.report().coverage.multiply_adds == 1.0


def test_autocast_of_a_part_is_not_lost():
    """A graph does not write it down, so that the forward which switches it on stays."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(conv(4, 4), nn.ReLU())

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return F.conv2d(self.inner(x), self.inner[0].weight).float()

    model = nn.Sequential(conv(3, 4), nn.ReLU(), Half(), conv(4, 2)).eval()
    frozen = cnnfast.freeze(model, IMAGE)
    with torch.no_grad():
        assert_near(frozen(IMAGE), model(IMAGE).double(), 2e-3)
    assert "turns autocast on or off" in frozen.report()["2.inner.0"].reason


def test_values_of_another_batch_stay_outside():
    """For one image a value of shape (1, C, 1, 1) could be one of each image: it is not."""
    model = Net(lambda s, x: s.b(s.a(x) * x.new_full((1, 4, 1, 1), 3.0)), a=conv(3, 4), b=conv(4, 4)).eval()
    frozen = cnnfast.freeze(model, IMAGE[:1])
    with torch.no_grad():
        assert_near(frozen(IMAGE), model(IMAGE).double())
    assert "another first dimension than the batch" in frozen.report()["mul"].reason
    assert frozen.report().coverage.multiply_adds == 1.0


def test_parameters_cast_to_the_type_of_a_value_are_constants():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale = conv(3, 4), nn.Parameter(torch.rand(4))

        def forward(self, x):
            y = self.conv(x)
            return y * torch.sigmoid(y * self.scale.view(1, -1, 1, 1).to(y.dtype).to(device=y.device))

    model = Scaled().eval()
    frozen = cnnfast.freeze(model, IMAGE, strict=True)
    with torch.no_grad():
        assert_near(frozen(IMAGE[:1]), model(IMAGE[:1]).double())
    check(nn.Sequential(Scaled(), nn.Softplus(), conv(4, 4)), plans=2)


def test_forwards_that_stay_read_the_settings_of_frozen_children():
    class Window(nn.Module):
        def __init__(self):
            super().__init__()
            self.size, self.body = 4, conv(3, 3)

        def forward(self, x):
            return F.relu(self.body(x))

    class Crops(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Window()

        def forward(self, x):
            if x.abs().sum() > self.inner.size:
                x = x[..., : self.inner.size]
            return self.inner(x)

    frozen = check(Crops(), kind=EagerNet, plans=1)
    assert frozen.report()["inner.body"].status == "fused"


def test_layers_without_work_are_not_counted_as_eager():
    frozen = check(nn.Sequential(conv(3, 4), nn.Softplus(), nn.Identity(), nn.Dropout(), nn.Softplus()))
    assert [row.type for row in frozen.report().left_out] == ["Softplus", "Softplus"]
    assert frozen.report()["2"].status == frozen.report()["3"].status == "no work"


@pytest.mark.parametrize("typed", [True, False])
def test_noise_is_drawn_at_every_call(typed):
    """Functions of a value's type or of a parameter are constants otherwise."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = conv(3, 4), conv(4, 4), nn.Parameter(torch.ones(1, 4, 1, 1))

        def forward(self, x):
            y = self.a(x)
            noise = (
                torch.rand(1, 4, 1, 1, dtype=y.dtype, device=y.device) if typed else torch.randn_like(self.c)
            )
            return self.b(y) + noise

    frozen = cnnfast.freeze(Noisy().eval(), IMAGE)
    assert not torch.equal(frozen(IMAGE), frozen(IMAGE))
    assert {row.type for row in frozen.report().left_out} & {"rand", "randn_like"}


def test_forwards_that_jump_keep_their_frozen_children():
    """As detection does, where a rounding error moves a box: eager children that are nudged do no better."""

    class Rounds(Decides):
        def forward(self, x):
            return (super().forward(x) * 1e6).round() % 2

    torch.manual_seed(0)
    frozen = cnnfast.freeze(Rounds(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 3))).eval(), IMAGE)
    assert frozen.report().coverage.multiply_adds == 1.0
