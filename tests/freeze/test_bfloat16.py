"""Networks frozen in bfloat16 against eager PyTorch under autocast, both against float64."""

import copy
import os
import re
import subprocess
import sys

import pytest
import torch
from fuse.networks import images, make
from fuse.plain_networks import HEAVY, PLAIN, make_ours, make_plain, plain_images
from torch import nn

import cnnfast
from cnnfast.export import ExportError
from cnnfast.fuse.check import relative_error
from cnnfast.plan.codec import decode

from .plan_functions import Woven
from .plan_interpreter import run
from .plan_operations import CASES, made
from .support import (
    assert_independent_of_threads,
    needs_extension,
    steps_of,
    takes_fixed_point,
    takes_pairs,
    truth,
    widens_all,
)

pytestmark = needs_extension


def autocast(model, x):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return copy.deepcopy(model).eval()(x)


def frozen_in_bfloat16(model, x, **options):
    return cnnfast.freeze(model, x, dtype=torch.bfloat16, **options)


def rms(got, wanted):
    return (got.double() - wanted).square().mean().sqrt().item()


def assert_as_near_as_autocast(frozen, model, x):
    """At most twice the error of eager autocast; its own luck counts for up to an eighth of a last place."""
    got, wanted = frozen(x), truth(model, x)
    assert got.dtype == torch.float32 and got.shape == wanted.shape
    floor = 2**-11 * wanted.abs().max().item()
    assert rms(got, wanted) <= 2 * rms(autocast(model, x), wanted) + floor


@pytest.mark.parametrize("name", PLAIN)
def test_bfloat16_plain_network(name):
    model, x = make_plain(name), plain_images(name)
    frozen = frozen_in_bfloat16(model, x, strict=True)
    assert_as_near_as_autocast(frozen, model, x)
    assert not frozen.report().left_out and frozen.dtype == torch.bfloat16
    assert "bfloat16" in str(frozen) and "bfloat16" in str(frozen.report())


@pytest.mark.parametrize("name", ["inception_net", "residual_net", "resnet18_preact", "densenet"])
def test_bfloat16_network_of_cnnfast(name):
    model, x = make_ours(name), plain_images(name, 3)
    assert_as_near_as_autocast(frozen_in_bfloat16(model, x, strict=True), model, x)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_operation(name):
    model, x = made(name), torch.randn(3, 3, 14, 12)
    frozen = frozen_in_bfloat16(model, x, strict=True)
    assert_as_near_as_autocast(frozen, model, x)
    first = frozen(x)
    frozen(torch.full_like(x, float("nan")))
    assert torch.equal(frozen(x), first)


@pytest.mark.parametrize("seed", range(12))
def test_bfloat16_woven_operations(seed):
    """Slices of one buffer, read and written by steps of all kinds."""
    torch.manual_seed(seed)
    model, x = Woven(seed).eval(), torch.randn(2, 3, 14, 12)
    assert_as_near_as_autocast(frozen_in_bfloat16(model, x, strict=True), model, x)


def test_bfloat16_rounds_once_where_it_stores():
    """One layer without Winograd: the nearest bfloat16 to the sum of rounded operands, in every place."""
    model = nn.Conv2d(7, 21, 3, padding=1)
    x = torch.randn(2, 7, 9, 10)
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        rounded.weight.copy_(rounded.weight.bfloat16())
    wanted = truth(rounded, x.bfloat16().float())
    got = frozen_in_bfloat16(model, x, winograd=False)(x).double()
    step = 2.0 ** (wanted.abs().log2().floor() - 7)  # of bfloat16
    assert ((got - wanted).abs() <= 0.5001 * step + 1e-6).all()
    assert torch.equal(got, got.bfloat16().double())


@pytest.mark.parametrize("channels", [3, 16, 70, 96])
def test_bfloat16_rounds_what_stands_beside_nan(channels):
    """To nearest, ties to even; a NaN leaves its neighbours in a vector alone, infinity stays."""
    model = nn.Sequential(nn.BatchNorm2d(channels, eps=0.0)).eval()
    nn.init.uniform_(model[0].weight, 0.5, 2.0)
    x = torch.randn(3, channels, 11, 9).bfloat16().float()
    special = torch.tensor([float("nan"), -float("nan"), float("inf"), -float("inf"), 3.38e38, -0.0, 1e-40])
    drawn = torch.rand(x.shape) < 0.02
    x[drawn] = special[torch.randint(len(special), (int(drawn.sum()),))]
    x = x.bfloat16().float()
    got = frozen_in_bfloat16(model, x)(x)
    wanted = (x * model[0].weight.detach().view(1, -1, 1, 1)).bfloat16().float()
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.nan_to_num(), wanted.nan_to_num())


def test_bfloat16_keeps_nan_and_infinity():
    model = nn.Sequential(nn.Conv2d(4, 40, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    x = torch.randn(1, 4, 20, 20)
    x[0, 0, 0, 0], x[0, 1, 19, 19] = float("nan"), float("inf")
    got, wanted = frozen_in_bfloat16(model, x, winograd=False)(x), model(x)
    assert torch.equal(got.isnan(), wanted.isnan()) and torch.equal(got.isinf(), wanted.isinf())


@pytest.mark.parametrize("function", [nn.SiLU(), nn.Sigmoid(), nn.Hardswish()])
def test_bfloat16_activations_over_their_whole_range(function):
    """What is rounded next may be approximated, by less than a sixteenth of its last place."""
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 3e38, -3e38, 1e-38])
    values = torch.cat([special, torch.linspace(-86, 90, 4001), torch.linspace(-3, 3, 4001)]).bfloat16()
    x = torch.zeros(1, 32, 1, len(values))  # in one channel: NaN reaches all others through its products
    x[0, 0, 0] = values
    conv = nn.Conv2d(32, 32, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(32)[:, :, None, None])
    got = frozen_in_bfloat16(nn.Sequential(conv, function), x)(x)[0, 0, 0].double()
    wanted = function(values.double())
    assert torch.equal(got.isnan(), function(values.float()).isnan())
    compared = ~got.isnan()
    got, wanted = got[compared], wanted[compared].float().double()
    assert torch.equal(got.isinf(), wanted.isinf())
    place = 2.0 ** (wanted.abs().clamp_min(2.0**-126).log2().floor() - 7)
    error = torch.where(got == wanted, 0.0, (got - wanted).abs() / place)
    denormal = wanted.abs() < 2.0**-125  # instructions for bfloat16 take those for zero
    assert error[~denormal].max() <= 0.5625 and (got[denormal].abs() <= 2.0**-125).all()


class Preactivated(nn.Module):
    """Batch norm and activation in front of a 1x1 convolution, from a value that others read as it is."""

    def __init__(self, channels, activation):
        super().__init__()
        self.norm, self.activation = nn.BatchNorm2d(channels), activation
        self.conv, self.other = nn.Conv2d(channels, 64, 1), nn.Conv2d(channels, 64, 1)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.bias, -0.5, 0.5)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(self.norm.running_var, 0.5, 1.5)

    def forward(self, x):
        return self.conv(self.activation(self.norm(x))) + self.other(x)


@pytest.mark.skipif(takes_pairs() or widens_all(), reason="where vectors multiply pairs of bfloat16")
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU()])
@pytest.mark.parametrize("channels", [64, 101, 512])
def test_bfloat16_pairs_normalise_on_the_way_in(channels, activation):
    model, x = Preactivated(channels, activation).eval(), torch.randn(3, channels, 14, 15)
    frozen = frozen_in_bfloat16(model, x)
    normalises = re.search(r"affine, conv 1x1, \d+ channels, pairs", steps_of(frozen, x))
    is_short = isinstance(activation, nn.ReLU)  # others are steps of their own
    assert bool(normalises) == is_short, steps_of(frozen, x)
    assert_as_near_as_autocast(frozen, model, x)
    assert_independent_of_threads(frozen, x)


@pytest.mark.parametrize("name", ["lenet", "resnet", "branches", "preactivation"])
def test_bfloat16_does_not_depend_on_threads(name):
    model, x = make(name), images(name, 5)
    assert_independent_of_threads(frozen_in_bfloat16(model, x), x)


@pytest.mark.parametrize("shape", [(1, 512, 3, 3), (2, 256, 7, 7), (1, 600, 1, 1)])
def test_bfloat16_layers_with_many_weights_do_not_depend_on_threads(shape):
    """Where threads divide output channels."""
    model = nn.Sequential(nn.Conv2d(shape[1], 512, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout())
    x = torch.randn(shape)
    frozen = frozen_in_bfloat16(model, x)
    assert_as_near_as_autocast(frozen, model, x)
    assert_independent_of_threads(frozen, x)


@pytest.mark.parametrize("name", ["resnet", "branches"])
def test_bfloat16_other_sizes(name):
    model = make(name)
    frozen = frozen_in_bfloat16(model, images(name))
    channels = images(name).shape[1]
    for batch, *size in ((1, 23, 18), (4, 17, 31)) if name == "resnet" else ((1, 9, 11), (6, 9, 11)):
        x = torch.randn(batch, channels, *size)
        got, wanted = frozen(x), truth(model, x)
        assert got.shape == wanted.shape and relative_error(got, wanted) < 0.05
    none = frozen(torch.randn(0, channels, 9, 11))
    assert none.shape == (0, *wanted.shape[1:]) and none.dtype == torch.float32


def test_bfloat16_dtypes_of_inputs_and_results():
    """Float32 models give float32, bfloat16 models bfloat16, whatever float dtype the input has."""
    model, x = make("resnet"), images("resnet")
    frozen = frozen_in_bfloat16(model, x)
    assert torch.equal(frozen(x.bfloat16()), frozen(x.bfloat16().float()))
    assert torch.equal(frozen(x), frozen(x.bfloat16())) and frozen(x).dtype == torch.float32
    half = copy.deepcopy(model).bfloat16().eval()
    of_half = frozen_in_bfloat16(half, x.bfloat16())
    got = of_half(x.bfloat16())
    assert got.dtype == torch.bfloat16 and of_half(x).dtype == torch.bfloat16
    assert got.is_contiguous(memory_format=torch.channels_last) or got.dim() == 2
    with torch.no_grad():
        eager = half(x.bfloat16())
    wanted = truth(copy.deepcopy(half).float(), x.bfloat16().float())
    assert rms(got, wanted) <= 2 * rms(eager, wanted) + 2**-9 * wanted.abs().max()


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "expanded"])
def test_bfloat16_input_layouts(layout):
    model, x = make("resnet"), images("resnet", 3)
    frozen = frozen_in_bfloat16(model, x)
    given = {
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "sliced": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
        "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": lambda t: t[:1].expand_as(t),
    }[layout]
    plain = given(x).contiguous()
    assert torch.equal(frozen(given(x)), frozen(plain))
    assert torch.equal(frozen(given(x.bfloat16())), frozen(plain))


@pytest.mark.parametrize(
    "x",
    [torch.randn(2, 3, 16, 16).double(), torch.randn(2, 3, 16, 16).half(), torch.zeros(2, 3, 16, 16).int()],
    ids=lambda x: str(x.dtype),
)
def test_bfloat16_wrong_inputs_are_errors(x):
    frozen = frozen_in_bfloat16(make("resnet"), images("resnet"))
    with pytest.raises(RuntimeError, match="takes float32 or bfloat16 CPU tensors, not"):
        frozen(x)


def test_bfloat16_refuses_in_words():
    model, x = make("lenet"), images("lenet")
    for dtype in (torch.float64, torch.float16, "bf16", None):
        with pytest.raises(ValueError, match=r'dtype is torch.float32, torch.bfloat16 or "auto", not'):
            cnnfast.freeze(model, x, dtype=dtype)
    with pytest.raises(ValueError, match="tune=True times float32"):
        frozen_in_bfloat16(model, x, tune=True)
    with pytest.raises(ValueError, match="'0.weight' is torch.bfloat16"):
        cnnfast.freeze(copy.deepcopy(model).bfloat16(), x.bfloat16())
    with pytest.raises(ValueError, match="give a bfloat16 tensor"):
        frozen_in_bfloat16(copy.deepcopy(model).bfloat16(), x)
    with pytest.raises(RuntimeError, match="no gradients"):
        frozen_in_bfloat16(model, x)(x.clone().requires_grad_())
    frozen = frozen_in_bfloat16(model, x)
    with pytest.raises(RuntimeError, match="not tuned"):
        torch.ops.cnnfast.tune_plan([x], frozen.weights, frozen.plan)


def test_bfloat16_saves_loads_copies_and_scripts(tmp_path):
    model, x = make("resnet"), images("resnet")
    frozen = frozen_in_bfloat16(model, x)
    wanted = frozen(x)
    loaded = cnnfast.load(frozen.save(tmp_path / "net"))
    assert loaded.dtype == torch.bfloat16 and torch.equal(loaded(x), wanted)
    assert torch.equal(copy.deepcopy(frozen)(x), wanted)
    assert torch.equal(torch.jit.script(frozen)(x), wanted)
    program = torch.export.export(frozen, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    larger = images("resnet", 7)
    assert torch.equal(program.module()(larger), frozen(larger))
    with pytest.raises(ExportError, match="frozen in bfloat16"):
        cnnfast.export(frozen, tmp_path / "net.onnx", format="onnx", example_inputs=x)


@pytest.mark.parametrize("results", [torch.float32, torch.bfloat16])
def test_bfloat16_shapes_without_data(results):
    from torch._subclasses.fake_tensor import FakeTensorMode

    model, x = make("resnet"), images("resnet", 4)
    frozen = cnnfast.freeze(model, x).in_bfloat16(results)
    frozen.signature = torch.ops.cnnfast.plan_signature(frozen.weights, frozen.plan)
    real = frozen(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = frozen(mode.from_tensor(x))
    assert fake.shape == real.shape and fake.stride() == real.stride()
    assert fake.dtype == real.dtype == results


def test_bfloat16_halves_the_arena():
    model, x = make_plain("resnet18"), plain_images("resnet18")
    plain, half = cnnfast.freeze(model, x), frozen_in_bfloat16(model, x)
    sizes = [int(re.search(r"arena (\d+) bytes", steps_of(net, x)).group(1)) for net in (plain, half)]
    assert sizes[1] < 0.6 * sizes[0] and "of bfloat16" in steps_of(half, x)


def test_bfloat16_in_parts():
    """Plans joined by eager layers: the layers between compute in float32."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Softplus()),
        *(nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 12 * 12, 5)),
    )
    x = torch.randn(2, 3, 16, 16)
    frozen = frozen_in_bfloat16(model, x)
    assert frozen.plans() and all(decode(part.plan).half for part in frozen.plans().values())
    assert_as_near_as_autocast(frozen, model, x)


def test_bfloat16_budget_and_verify():
    model, x = make("resnet"), images("resnet")
    frozen = frozen_in_bfloat16(model, x, error_budget=0.05, verify=True)
    assert "error budget 5.0e-02: kept by bfloat16" in str(frozen.report())
    with pytest.raises(ValueError, match="out of reach.*bfloat16"):
        frozen_in_bfloat16(model, x, error_budget=1e-5)


def test_auto_reports_both_and_keeps_the_budget():
    model, x = make("resnet"), images("resnet")
    frozen = cnnfast.freeze(model, x, dtype="auto", error_budget=1e-6)
    assert frozen.dtype == torch.float32
    assert re.search(
        r"dtype: float32 .*float32 [\d.]+ ms, bfloat16 [\d.]+ ms .*beyond the budget", str(frozen.report())
    )
    either = cnnfast.freeze(model, x, dtype="auto")
    assert relative_error(either(x), truth(model, x)) < 0.05
    assert "within the budget of 2.0e-02" in str(either.report())


def test_auto_takes_the_faster(monkeypatch):
    from cnnfast.plan import arithmetic

    model, x = make("lenet"), images("lenet")
    for times, dtype in (([2.0, 1.0], torch.bfloat16), ([1.0, 2.0], torch.float32)):
        monkeypatch.setattr(arithmetic, "_times", lambda networks, inputs, times=times: times)
        assert cnnfast.freeze(model, x, dtype="auto").dtype == dtype


def test_bfloat16_profile_counts_stored_bytes():
    model, x = make("resnet"), images("resnet")
    plain, half = cnnfast.freeze(model, x), frozen_in_bfloat16(model, x)
    assert half.profile(x, repeats=1).bytes == pytest.approx(plain.profile(x, repeats=1).bytes / 2, rel=1e-3)


SCRIPT = """
import os, sys, torch
sys.path[:0] = sys.argv[1:2]
from fuse.plain_networks import make_plain, plain_images
import cnnfast
for name in sys.argv[2].split(","):
    torch.manual_seed(0)
    model, x = make_plain(name).eval(), plain_images(name)
    with torch.no_grad():
        wanted = model(x)
        frozen = cnnfast.freeze(model, x, dtype=torch.bfloat16, strict=True)
        got = frozen(x)
        with torch.autocast("cpu", torch.bfloat16):
            eager = model(x)
    error, allowed = ((y.float() - wanted).square().mean().sqrt() for y in (got, eager))
    assert error <= 2 * allowed + 2**-11 * wanted.abs().max(), (name, error, allowed)
    steps = torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan)
    pairs = "CNNFAST_BF16_PAIRS" in os.environ or cnnfast._ext.active_isa() == "amx"
    mixed = not pairs and cnnfast._ext.active_isa() == "avx512_bf16"
    assert mixed or ("widened" not in steps) == pairs, steps
    assert not mixed or "pairs of bfloat16" in steps, steps
    assert not pairs or ("siblings" not in steps and ", conv 1x1" not in steps), steps
print("ok")
"""


def _other_isas():
    if not cnnfast._ext.AVAILABLE:
        return []
    from cnnfast import _info

    return [isa for isa in _info.available_isas() if isa != _info.active_isa()]


def run_elsewhere(networks, **variables):
    """The same comparison in a process of its own."""
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = [sys.executable, "-c", SCRIPT, tests, ",".join(networks)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ok\n"


@pytest.mark.parametrize("isa", _other_isas())
def test_bfloat16_on_other_instruction_sets(isa):
    run_elsewhere(("lenet", "inception_net", "resnet18_preact", "densenet"), CNNFAST_CPU_ISA=isa)


def test_bfloat16_pairs_on_every_network():
    """Plans as CPUs with bfloat16 arithmetic have them, on widened products."""
    run_elsewhere([name for name in PLAIN if name not in HEAVY], CNNFAST_BF16_PAIRS="1")


@pytest.mark.parametrize("images", [1, 5])
@pytest.mark.parametrize("channels", [24, 256])
def test_bfloat16_tiles_of_7x7(images, channels):
    """One more than for floats: 14x14 pixels are four tiles, and their errors vanish beside the rounding."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU())
    x = torch.randn(images, channels, 14, 14)
    frozen = frozen_in_bfloat16(model, x)
    if images == 5 and widens_all() and not takes_fixed_point():
        assert "winograd tiles of 7" in steps_of(frozen, x)
    assert "tiles of 7" not in steps_of(cnnfast.freeze(model, x), x)
    assert_as_near_as_autocast(frozen, model, x)
    assert_independent_of_threads(frozen, x)


@pytest.mark.skipif(takes_pairs() or widens_all(), reason="where vectors multiply pairs of bfloat16")
def test_layers_take_pairs_or_widened_products_by_their_cycles():
    model = nn.Sequential(
        nn.Conv2d(8, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 96, 1),
    )
    x = torch.randn(4, 8, 56, 56)
    frozen = frozen_in_bfloat16(model, x)
    steps = steps_of(frozen, x)
    assert "conv 3x3, 8 channels, pairs" in steps and "conv 1x1, 64 channels, pairs" in steps, steps
    assert "conv 3x3, 64 channels, winograd" in steps, steps
    assert_as_near_as_autocast(frozen, model, x)
    assert_independent_of_threads(frozen, x)


def test_bfloat16_plan_reads_as_the_same_graph():
    """The nodes are those of float32: only the way of storing differs."""
    model, x = make("branches"), images("branches")
    plain, half = cnnfast.freeze(model, x), frozen_in_bfloat16(model, x)
    assert decode(plain.plan).nodes == decode(half.plan).nodes
    wanted = run(decode(half.plan), half.weights, [x])[0]
    assert relative_error(half(x), wanted) < 0.05


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"pad_top": 1 << 20, "pad_left": 1 << 20}, "more than any memory holds|no memory for them"),
        ({"pad_left": 1 << 20, "pad_right": 1 << 20}, "values at once: too many"),
    ],
)
def test_bfloat16_padding_beyond_memory(attributes, words):
    """As a file made by hand may have it: an error before any thread asks for memory."""
    if not widens_all() and "pad_right" in attributes:
        pytest.skip("17 GB of activations that a machine may have")
    x = torch.randn(1, 512, 8, 8)
    frozen = frozen_in_bfloat16(nn.Conv2d(512, 4, 3, stride=2), x)
    huge = frozen.with_conv_attributes(stride_h=1 << 20, stride_w=1 << 20, **attributes)
    with pytest.raises(RuntimeError, match=words):
        huge(x)
    assert frozen(x).shape == (1, 4, 3, 3)
