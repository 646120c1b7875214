"""Networks that no single plan holds: plans joined by layers that stay eager."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from fuse.networks import liven
from torch import nn

import cnnfast
from cnnfast.freeze import UnsupportedNetworkError

from .parts_support import IMAGE, Net, check, conv
from .support import assert_near, needs_extension

pytestmark = needs_extension


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
