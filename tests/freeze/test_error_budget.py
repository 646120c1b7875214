"""freeze(error_budget=...): the largest Winograd tile whose error against float64 is small enough."""

import copy
import math
import re

import pytest
import torch
from torch import nn

import cnnfast
from cnnfast.freeze import EagerNet, FrozenNet
from cnnfast.fuse.check import relative_error
from cnnfast.plan.codec import decode, encode
from cnnfast.plan.nodes import Op

from .support import assert_near, needs_extension, truth

TILES = (6, 4, 2, 0)


def stacked():
    """Six 3x3 convolutions: errors grow from layer to layer."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(32, 64, 3, padding=1)]
    for _ in range(5):
        layers += [nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)]
    return nn.Sequential(*layers).eval(), torch.randn(2, 32, 24, 24)


def largest_tile(frozen):
    (tile,) = {node["largest_tile"] for node in decode(frozen.plan).nodes if node.op is Op.CONV2D}
    return tile


@pytest.fixture(scope="module")
def case():
    """The network, its input, its float64 output, and the error of each largest tile."""
    model, x = stacked()
    frozen, wanted = cnnfast.freeze(model, x), truth(model, x)
    plan, errors = decode(frozen.plan), {}
    for tile in TILES:
        words = encode(plan.with_conv_attributes(largest_tile=tile), frozen.weights)
        errors[tile] = relative_error(frozen.with_plan(words)(x), wanted)
    assert errors[6] > 2 * errors[4] and errors[4] > 1.2 * errors[2] and errors[2] < 2e-6, errors
    return model, x, wanted, errors


@needs_extension
@pytest.mark.parametrize("tile", [6, 4, 2])
def test_budget_takes_the_largest_tile_within_it(case, tile):
    model, x, wanted, errors = case
    above = errors.get(tile + 2, 1.0)
    frozen = cnnfast.freeze(model, x, error_budget=math.sqrt(errors[tile] * above))
    assert largest_tile(frozen) == tile
    assert relative_error(frozen(x), wanted) == errors[tile]
    assert_near(frozen(x), wanted, errors[tile] * 1.01)
    (note,) = frozen.report().notes
    assert f"kept by Winograd tiles up to {tile}, error {errors[tile]:.1e}" in note
    for larger in TILES[: TILES.index(tile)]:
        assert f"Winograd tiles up to {larger}: {errors[larger]:.1e}" in note


@needs_extension
def test_budget_just_met_and_just_missed(case):
    model, x, _, errors = case
    assert largest_tile(cnnfast.freeze(model, x, error_budget=errors[6])) == 6
    assert largest_tile(cnnfast.freeze(model, x, error_budget=math.nextafter(errors[6], 0))) == 4


@needs_extension
def test_budget_beyond_direct_convolutions_is_an_error(case):
    model, x, _, errors = case
    with pytest.raises(ValueError, match="error_budget=1e-09 is out of reach") as raised:
        cnnfast.freeze(model, x, error_budget=1e-9)
    found = re.findall(r"(?:up to (\d)|(direct) convolutions): (\S+?e-\d+)", str(raised.value))
    assert [(tile, error) for tile, _, error in found] == [
        *((str(tile), f"{errors[tile]:.1e}") for tile in TILES[:3]),
        ("", f"{errors[0]:.1e}"),
    ]


@needs_extension
def test_budget_without_winograd_tries_direct_convolutions_alone(case):
    model, x, _, errors = case
    frozen = cnnfast.freeze(model, x, winograd=False, error_budget=errors[0])
    assert largest_tile(frozen) == 0 and "winograd" not in str(
        torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan)
    )
    assert "kept by direct convolutions, error" in str(frozen.report())
    with pytest.raises(ValueError, match=r"\(direct convolutions: [^;]+ of the largest"):
        cnnfast.freeze(model, x, winograd=False, error_budget=errors[0] / 2)


@needs_extension
def test_budget_with_verify_and_tune(case, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, x, wanted, errors = case
    frozen = cnnfast.freeze(model, x, error_budget=1e-3, verify=True, tune=True)
    notes = [note.split(":")[0] for note in frozen.report().notes]
    assert notes == ["tuned", "error budget 1.0e-03", "verified"]
    assert_near(frozen(x), wanted, 1e-4)
    strict = cnnfast.freeze(model, x, error_budget=math.sqrt(errors[6] * errors[4]), tune=True)
    assert decode(strict.plan).tuned and largest_tile(strict) in (6, 4)
    assert_near(strict(x), wanted, math.sqrt(errors[6] * errors[4]) * 1.01)
    torch.ops.cnnfast.clear_conv_times()


@needs_extension
def test_budget_is_saved_with_the_network(case, tmp_path):
    model, x, _, errors = case
    frozen = cnnfast.freeze(model, x, error_budget=math.sqrt(errors[6] * errors[4]))
    loaded = cnnfast.load(frozen.save(tmp_path / "net"))
    assert torch.equal(loaded(x), frozen(x)) and loaded.report() == frozen.report()


@needs_extension
def test_budget_of_a_fused_network_and_one_in_training(case):
    model, x, wanted, errors = case
    training = copy.deepcopy(model).train()
    for network in (cnnfast.fuse(model), training):
        frozen = cnnfast.freeze(network, x, error_budget=2 * errors[6])
        assert isinstance(frozen, FrozenNet)
        assert_near(frozen(x), wanted, 2 * errors[6])
    assert training.training and next(training.parameters()).dtype == torch.float32


@pytest.mark.parametrize("budget", [0, 0.0, -1e-5, math.inf, math.nan, "1e-5", True, 1j])
def test_budget_that_is_no_positive_number_is_an_error(budget):
    with pytest.raises(ValueError, match="positive finite number"):
        cnnfast.freeze(nn.Conv2d(1, 1, 3), torch.ones(1, 1, 4, 4), error_budget=budget, allow_eager=True)


class Constant(nn.Module):
    """A layer whose own tensor stays float32 in a float64 network."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x.float())


@needs_extension
def test_network_without_float64_is_an_error_in_words():
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match="in float64, where it fails"):
        cnnfast.freeze(Constant(), x, error_budget=1e-3, allow_eager=True)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), ToFloat())
    with pytest.raises(ValueError, match="there it gives torch.float32"):
        cnnfast.freeze(model, x, error_budget=1e-3, allow_eager=True)


class ToFloat(nn.Module):
    def forward(self, x):
        return x.float()


def test_budget_holds_for_eager_snapshots_too():
    model, x = nn.Sequential(nn.Softplus(), nn.CELU()), torch.randn(1, 3, 8, 8)
    snapshot = cnnfast.freeze(model, x, error_budget=1e-4, allow_eager=True)
    assert isinstance(snapshot, EagerNet) and "kept by eager operators, error" in str(snapshot.report())
    with pytest.raises(ValueError, match="out of reach on example_inputs .eager operators: "):
        cnnfast.freeze(model, x, error_budget=1e-12, allow_eager=True)


@needs_extension
def test_verified_networks_show_their_error():
    model, x = stacked()
    assert re.search(r"verified: error \d\.\de-\d+ of", str(cnnfast.freeze(model, x, verify=True).report()))
