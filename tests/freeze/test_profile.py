"""Profiles of frozen networks: bytes and percentages by hand, the roofline, the command."""

import builtins

import pytest
import torch
from torch import nn

import cnnfast
from cnnfast.__main__ import main
from cnnfast.benchmarking.case import ModelSpec
from cnnfast.limits import Limits
from cnnfast.plan.profile import Profile, ProfileRow

from .support import needs_extension

LIMITS = Limits(2, "avx512", 200e9, {"L2": 150e9, "L3": 60e9, "memory": 20e9})
ROWS = (
    ProfileRow("input", "input", (1, 2, 4, 4), 0.0, 0, 0),
    ProfileRow("conv + bn + relu", "conv2d", (1, 8, 4, 4), 2e-3, 100_000_000, 4_000_000),
    ProfileRow("pool", "max_pool2d", (1, 8, 2, 2), 2e-3, 0, 10_000_000),
)
BY_HAND = Profile((1, 2, 4, 4), ROWS, threads=2, given_limits=LIMITS)
PNG = b"\x89PNG\r\n\x1a\n"


def net():
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 1, groups=2, bias=False),
        nn.Flatten(),
        nn.Linear(6 * 9, 5),
    )


@needs_extension
def test_bytes_of_each_node_are_input_weights_and_output():
    profile = cnnfast.freeze(net(), torch.rand(3, 2, 6, 6)).profile(torch.rand(3, 2, 6, 6), 1, LIMITS)
    floats = {row.operation.split()[0]: [] for row in profile.rows}
    for row in profile.rows:
        assert row.bytes % 4 == 0
        floats[row.operation.split()[0]].append(row.bytes // 4)
    image = 3 * 36
    assert floats == {
        "input": [2 * 2 * image],
        "conv2d": [2 * image + 8 * 2 * 9 + 8 + 8 * image, 8 * 27 + 6 * 4 + 6 * 27],
        "max_pool2d": [8 * image + 8 * 27],
        "flatten": [0],
        "linear": [3 * 54 + 5 * 54 + 5 + 3 * 5],
    }
    assert profile.bytes == sum(row.bytes for row in profile.rows)
    assert profile.macs == 3 * 36 * 8 * 18 + 27 * 6 * 4 + 3 * 54 * 5


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.a, self.b = nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x):
        x = torch.relu(self.bn(x))
        return torch.cat([self.a(x), self.b(x)], 1)


@needs_extension
def test_bytes_of_branches_are_their_own_and_the_concatenation_has_none():
    x = torch.rand(2, 4, 5, 5)
    profile = cnnfast.freeze(Branches().eval(), x).profile(x, 1, LIMITS)
    floats = {row.operation.split(" + ")[0].split(" of ")[0]: row.bytes // 4 for row in profile.rows}
    assert floats == {
        "input 4-D": 2 * 4 * 50,
        "affine 4 channels": 2 * 4 * 50 + 2 * 4,
        "conv2d 4→8 1×1": 4 * 50 + 8 * 5 + 8 * 50,
        "conv2d 4→16 1×1": 4 * 50 + 16 * 5 + 16 * 50,
        "concat": 0,
    }


def test_rates_and_percentages_by_hand():
    conv, pool = ROWS[1:]
    assert conv.gflops == pytest.approx(100.0) and conv.gbytes == pytest.approx(2.0)
    assert conv.intensity == pytest.approx(50.0)
    assert (pool.gflops, pool.intensity) == (0.0, 0.0) and pool.gbytes == pytest.approx(5.0)
    assert BY_HAND.percent_of_peak(conv) == pytest.approx(50.0)
    assert BY_HAND.gflops == pytest.approx(50.0) and BY_HAND.percent_of_peak() == pytest.approx(25.0)
    assert BY_HAND.limits is LIMITS


def test_table_shows_rates_beside_the_limits():
    title, header, untimed, conv, pool, last = str(BY_HAND).splitlines()
    assert title == "input 1×2×4×4: 4.000 ms, 50.0 GFLOP/s, 25 % of the peak"
    assert header.split("  ")[-1] == "GB/s" and "% of peak" in header
    assert untimed.split() == ["0", "input", "input", "1×2×4×4", "0.0000", "0.0%"]
    assert conv.split()[8:] == ["2.0000", "50.0%", "100.0", "50", "3.815", "2.0"]
    assert pool.split()[4:] == ["2.0000", "50.0%", "9.537", "5.0"]
    assert last == f"limits of {LIMITS}"
    assert BY_HAND.to_rich().row_count == 3


@needs_extension
def test_limits_are_measured_when_they_are_asked_for(monkeypatch):
    asked = []

    def measure(threads):
        asked.append(threads)
        return LIMITS

    monkeypatch.setattr("cnnfast.plan.profile.measure_limits", measure)
    x = torch.rand(1, 2, 6, 6)
    profile = cnnfast.freeze(net(), x).profile(x, 1)
    assert profile.rows and profile.gflops > 0 and not asked
    assert profile.limits is LIMITS and asked == [torch.get_num_threads()]
    assert "% of peak" in str(profile)


def drawn(monkeypatch, profile, path):
    """The roofline's axes, the words at its points and those of its legend."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **options: figures.append(self) or save(self, *args, **options)
    )
    assert profile.roofline(path) == path
    (axes,), (legend,) = figures[0].axes, figures[0].legends
    return axes, [text.get_text() for text in axes.texts], [text.get_text() for text in legend.get_texts()]


def test_roofline_is_a_png_with_roofs_and_named_layers(monkeypatch, tmp_path):
    path = tmp_path / "folder" / "roofline.png"
    axes, names, legend = drawn(monkeypatch, BY_HAND, path)
    assert path.read_bytes().startswith(PNG) and [file.name for file in path.parent.iterdir()] == [path.name]
    assert names == ["1"] and "node 1, conv: 50% of the time" in legend
    assert len(legend) == 5 and "memory: 20 GB/s read" in legend and "multiply-adds: 200 GFLOP/s" in legend
    assert axes.get_xscale() == axes.get_yscale() == "log"
    points = axes.collections[0].get_offsets().tolist()
    assert points == [[pytest.approx(50.0), pytest.approx(100.0)]]
    for line, (place, rate) in zip(axes.lines, LIMITS.read_bytes_per_s.items(), strict=False):
        for x, y in zip(*line.get_data(), strict=True):
            assert y == pytest.approx(min(rate * x, 200e9) / 1e9), place


def test_roofline_of_a_network_without_multiply_adds(tmp_path):
    profile = Profile((1, 2, 4, 4), (ROWS[0], ROWS[2]), threads=1, given_limits=LIMITS)
    assert profile.roofline(tmp_path / "pool.png").read_bytes().startswith(PNG)


def test_roofline_without_matplotlib_says_what_to_install(monkeypatch, tmp_path):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        BY_HAND.roofline(tmp_path / "roofline.png")
    assert not list(tmp_path.iterdir())


@needs_extension
def test_profile_command_takes_bfloat16(capsys):
    """Whose values are half as long."""
    sizes = []
    for dtype in ("fp32", "bf16"):
        command = ["profile", "--model", "lenet", "--batch", "64", "--repeats", "1", "--dtype", dtype]
        assert main(command) == 0
        inputs = next(row for row in capsys.readouterr().out.splitlines() if "input 4-D" in row)
        sizes.append(float(inputs.split()[-1]))
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.01)


@needs_extension
def test_profile_command_prints_the_table_and_draws(capsys, tmp_path):
    before, out = torch.get_num_threads(), tmp_path / "roofline.png"
    command = ["profile", "--model", "residual_net", "--batch", "2", "--threads", "1", "--repeats", "1"]
    assert main([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "input 2×1×28×28: " in printed and "% of peak" in printed and "2×16×12×12" in printed
    assert "limits of 1 thread" in printed and f"written: {out}" in printed
    assert out.read_bytes().startswith(PNG)
    assert torch.get_num_threads() == before


@needs_extension
def test_profile_command_takes_networks_of_torchvision(capsys):
    pytest.importorskip("torchvision")
    assert main(["profile", "--model", "torchvision:squeezenet1_1", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert "input 1×3×224×224: " in printed and "conv2d 3→64 3×3, stride 2 + relu" in printed


@needs_extension
def test_profile_command_says_which_layers_stay_eager(capsys, monkeypatch):
    monkeypatch.setattr(ModelSpec, "module", lambda spec: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softplus()))
    assert main(["profile", "--model", "lenet"]) != 0
    assert "Softplus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "lenett"], "no network named 'lenett'; known: lenet,"),
        (["--model", "torchvision:lenet"], "torchvision has no network named 'lenet'"),
        (["--model", "lenet", "--batch", "0"], "below 1"),
    ],
)
def test_profile_command_names_wrong_usage(arguments, words, capsys):
    with pytest.raises(SystemExit):
        main(["profile", *arguments])
    assert words in capsys.readouterr().err
