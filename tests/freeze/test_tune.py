"""freeze(tune=True): measured times choose algorithms; the table, its file, and who looks into it."""

import json
import os
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from fuse.networks import images, make
from torch import nn

import cnnfast
from cnnfast.plan import tuning
from cnnfast.plan.codec import decode, encode

from .support import assert_near, needs_extension, truth

pytestmark = needs_extension

# points and tile of what can compute a convolution of stride 1
DIRECT = (0, 0)
THREE = [DIRECT, (4, 2), (5, 3), (6, 4), (8, 6)]
FIVE = [DIRECT, (6, 2), (8, 4)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty table and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.ops.cnnfast.clear_conv_times()
    yield tmp_path / "cache" / "cnnfast"
    torch.ops.cnnfast.clear_conv_times()


def conv(kernel=3, inputs=64, outputs=64, size=24, batch=2):
    """A layer that the model of cost computes by Winograd's algorithm, and its input."""
    torch.manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return layer, torch.randn(batch, inputs, size, size)


def rows(layer, x, fastest, algorithms=None, threads=None):
    """Doctored measurements: `fastest` takes a hundredth of what the others take."""
    kernel = layer.kernel_size[0]
    height, width = (size + 2 * layer.padding[0] - kernel + 1 for size in x.shape[2:])
    geometry = [
        threads or torch.get_num_threads(), len(x), layer.in_channels, layer.out_channels, layer.groups,
        kernel, kernel, height, width,
    ]  # fmt: skip
    algorithms = algorithms or (THREE if kernel == 3 else FIVE)
    return torch.tensor([[*geometry, *each, 1000 if each == fastest else 100000] for each in algorithms])


def inject(*arguments, **options):
    torch.ops.cnnfast.add_conv_times(rows(*arguments, **options))


def described(frozen, x):
    return torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan)


def name_of(algorithm):
    return f", winograd tiles of {algorithm[1]}," if algorithm != DIRECT else ", direct,"


def is_computed_by(frozen, x, algorithm):
    return name_of(algorithm) in described(frozen, x)


@pytest.mark.parametrize(
    ("kernel", "algorithm"), [*((3, each) for each in THREE), *((5, each) for each in FIVE)]
)
def test_tuned_plan_takes_the_fastest_of_the_table(kernel, algorithm):
    layer, x = conv(kernel)
    inject(layer, x, algorithm)
    frozen = cnnfast.freeze(layer, x, tune=True)
    assert is_computed_by(frozen, x, algorithm)
    assert "tuned: 0 layers timed, 1 from the cache, in " in str(frozen.report())
    assert_near(frozen(x), truth(layer, x), 3e-5)
    assert "conv2d 64→64" in repr(frozen) and ", tuned" in repr(frozen)


def test_untuned_plan_does_not_look_into_the_table():
    layer, x = conv()
    before = cnnfast.freeze(layer, x)
    text, values = described(before, x), before(x)
    assert "winograd" in text
    inject(layer, x, DIRECT)
    assert is_computed_by(cnnfast.freeze(layer, x, tune=True), x, DIRECT)
    after = cnnfast.freeze(layer, x)
    assert described(after, x) == text and torch.equal(after(x), values)
    assert "tuned" not in repr(after) + str(after.report())


def test_tuning_measures_what_is_not_known_and_writes_it(cache):
    model = nn.Sequential(conv()[0], nn.ReLU(), conv(5)[0], conv()[0], nn.Conv2d(64, 8, 3, 2))
    x = conv()[1]
    frozen = cnnfast.freeze(model, x, tune=True)
    assert "tuned: 3 layers timed, 0 from the cache, in " in str(frozen.report())
    times = torch.ops.cnnfast.conv_times().tolist()
    assert all(len(row) == len(tuning.COLUMNS) and row[-1] > 0 for row in times)
    for kernel, algorithms in ((3, THREE), (5, FIVE)):
        of_kernel = [row for row in times if row[5] == kernel]
        assert [tuple(row[9:11]) for row in of_kernel] == algorithms
        fastest = tuple(min(of_kernel, key=lambda row: row[-1])[9:11])
        assert is_computed_by(frozen, x, fastest)
    assert_near(frozen(x), truth(model, x), 3e-5)
    (file,) = cache.iterdir()
    content = json.loads(file.read_text())
    assert content["cnnfast"] == cnnfast.__version__ and content["columns"] == list(tuning.COLUMNS)
    assert content["times"] == times
    again = cnnfast.freeze(model, x, tune=True)
    assert "tuned: 0 layers timed, 3 from the cache" in str(again.report())
    assert described(again, x) == described(frozen, x) and torch.equal(again(x), frozen(x))


@pytest.mark.parametrize("name", ["lenet", "resnet"])
def test_tuned_networks_are_right(name):
    model, x = make(name), images(name)
    frozen = cnnfast.freeze(model, x, tune=True, verify=True)
    assert_near(frozen(x), truth(model, x), 3e-5)
    y = images(name, 7)
    assert_near(frozen(y), truth(model, y), 3e-5)


@pytest.mark.parametrize("algorithm", THREE)
def test_tuned_convolution_behind_a_norm_and_in_front_of_a_pooling(algorithm):
    """What can be done on the way in or in strips depends on the algorithm."""
    layer, x = conv(size=27)
    model = nn.Sequential(
        nn.BatchNorm2d(64), nn.ReLU(), layer, nn.Conv2d(64, 64, 3, padding=1), nn.MaxPool2d(3, 2)
    )
    model[0].running_mean.uniform_(-0.5, 0.5)
    inject(layer, x, algorithm)
    frozen = cnnfast.freeze(model, x, tune=True)
    assert described(frozen, x).count(name_of(algorithm)) == 2
    assert_near(frozen(x), truth(model, x), 3e-5)


def test_measurements_hold_for_their_sizes_and_threads_alone():
    layer, x = conv()
    inject(layer, x, DIRECT)
    frozen = cnnfast.freeze(layer, x, tune=True)
    larger = torch.cat((x, x))
    assert is_computed_by(frozen, x, DIRECT) and "winograd" in described(frozen, larger)
    assert_near(frozen(larger), truth(layer, larger), 3e-5)
    torch.ops.cnnfast.clear_conv_times()
    inject(layer, larger, DIRECT, threads=torch.get_num_threads() + 1)
    assert "winograd" in described(frozen.with_plan(frozen.plan.clone()), larger)


def test_largest_tile_bounds_what_is_measured_and_chosen():
    layer, x = conv()
    inject(layer, x, (8, 6), [(5, 3), (8, 6)])
    frozen = cnnfast.freeze(layer, x, winograd=False, tune=True)
    assert is_computed_by(frozen, x, DIRECT) and "0 layers timed, 0 from the cache" in str(frozen.report())
    plan = decode(cnnfast.freeze(layer, x).plan).with_conv_attributes(tuned=1, largest_tile=4)
    bounded = frozen.with_plan(encode(plan, frozen.weights))
    assert is_computed_by(bounded, x, (5, 3))  # what was measured of what may be chosen
    assert torch.ops.cnnfast.tune_plan([x], bounded.weights, bounded.plan) == (1, 0)
    tiles = {tuple(row[9:11]) for row in torch.ops.cnnfast.conv_times().tolist()}
    assert tiles == set(THREE)
    assert torch.ops.cnnfast.tune_plan([x], bounded.weights, bounded.plan) == (0, 1)


def test_measurements_present_stay():
    layer, x = conv()
    inject(layer, x, DIRECT)
    inject(layer, x, (8, 6))
    assert is_computed_by(cnnfast.freeze(layer, x, tune=True), x, DIRECT)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (torch.zeros(2, 11, dtype=torch.int64), r"shape \[n, 12\]"),
        (torch.zeros(12, dtype=torch.int64), r"shape \[n, 12\]"),
        (torch.zeros(2, 12), "int64"),
        (-torch.ones(2, 12, dtype=torch.int64), "negative"),
    ],
)
def test_wrong_measurements_are_an_error(times, words):
    with pytest.raises(RuntimeError, match=words):
        torch.ops.cnnfast.add_conv_times(times)
    assert torch.ops.cnnfast.conv_times().shape == (0, len(tuning.COLUMNS))


_FRESH = """
    import sys, torch, cnnfast
    torch.set_num_threads(int(sys.argv[2]))
    x = torch.load(sys.argv[1] + ".input")
    loaded = cnnfast.load(sys.argv[1])
    print("loaded", "winograd" in torch.ops.cnnfast.describe_plan([x], loaded.weights, loaded.plan))
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(64, 64, 3, padding=1).eval()
    frozen = cnnfast.freeze(layer, x, tune=True)
    print("frozen", "winograd" in torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan))
    print(frozen.report().notes[0])
    error = (loaded(x) - layer(x)).abs().max() + (frozen(x) - layer(x)).abs().max()
    print("error", error.item() < 1e-4)
"""


def fresh_process(path, cache_home):
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            textwrap.dedent(_FRESH),
            str(path),
            str(torch.get_num_threads()),
        ],
        env={**os.environ, "XDG_CACHE_HOME": str(cache_home)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_file_serves_fresh_processes(cache, tmp_path):
    layer, x = conv()
    inject(layer, x, DIRECT)
    tuning.save_times()
    frozen = cnnfast.freeze(layer, x, tune=True)
    path = frozen.save(tmp_path / "net")
    torch.save(x, f"{path}.input")
    lines = fresh_process(path, cache.parent)
    assert lines[:2] == ["loaded False", "frozen False"] and lines[3] == "error True"
    assert lines[2].startswith("tuned: 0 layers timed, 1 from the cache")
    lines = fresh_process(path, tmp_path / "elsewhere")
    assert lines[0] == "loaded True" and lines[2].startswith("tuned: 1 layers timed, 0 from the cache")
    assert (tmp_path / "elsewhere" / "cnnfast").is_dir()


def test_writing_keeps_what_other_processes_wrote():
    first, second = conv(), conv(5)
    inject(*first, DIRECT)
    tuning.save_times()
    torch.ops.cnnfast.clear_conv_times()
    inject(*second, DIRECT)
    tuning.save_times()
    torch.ops.cnnfast.clear_conv_times()
    tuning.load_times()
    assert len(torch.ops.cnnfast.conv_times()) == len(THREE) + len(FIVE)


def write_file(change):
    """A file of this machine that makes direct convolution the fastest, changed."""
    layer, x = conv()
    inject(layer, x, DIRECT)
    tuning.save_times()
    torch.ops.cnnfast.clear_conv_times()
    file = tuning.cache_file()
    file.write_bytes(change(file.read_bytes()))
    return layer, x


def changed(key, value):
    return lambda content: json.dumps({**json.loads(content), key: value}).encode()


def without(key):
    return lambda content: json.dumps({k: v for k, v in json.loads(content).items() if k != key}).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"\xff\xfe" + content,
        lambda content: b"[]",
        lambda content: b"[" * 100000,
        without("times"),
        without("cpu"),
        changed("times", []),
        changed("times", [[1] * 11]),
        changed("times", [[1] * 12, [1] * 11]),
        changed("times", [[-1] * 12]),
        changed("times", [[0.5] * 12]),
        changed("times", [["1"] * 12]),
        changed("times", [[2**70] * 12]),
        changed("times", 3),
        changed("times", None),
    ],
)
def test_damaged_file_is_left_out_with_a_warning_and_written_anew(change):
    layer, x = write_file(change)
    with pytest.warns(RuntimeWarning, match="measured times is damaged"):
        frozen = cnnfast.freeze(layer, x, tune=True)
    assert "tuned: 1 layers timed, 0 from the cache" in str(frozen.report())
    assert_near(frozen(x), truth(layer, x), 3e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.ops.cnnfast.clear_conv_times()
        tuning.load_times()
    assert len(torch.ops.cnnfast.conv_times()) == len(THREE)


@pytest.mark.parametrize(
    "change",
    [
        changed("cnnfast", "0.0.1"),
        changed("cpu", "another"),
        changed("isa", "another"),
        changed("columns", ["threads"]),
    ],
)
def test_file_of_another_version_or_machine_is_left_out(change):
    layer, x = write_file(change)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frozen = cnnfast.freeze(layer, x, tune=True)
    assert "tuned: 1 layers timed, 0 from the cache" in str(frozen.report())


def test_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    layer, x = conv()
    with pytest.warns(RuntimeWarning, match="not kept for other processes"):
        frozen = cnnfast.freeze(layer, x, tune=True)
    assert_near(frozen(x), truth(layer, x), 3e-5)


def test_export_of_a_tuned_network_is_checked_against_the_same_choices(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["cnnfast.export.fresh_process"], "_TOLERANCE", 0.0)
    layer, x = conv()
    inject(layer, x, DIRECT)
    frozen = cnnfast.freeze(layer, x, tune=True)
    assert not torch.equal(frozen(x), cnnfast.freeze(layer, x)(x))
    path = cnnfast.export(frozen, tmp_path / "net.pt", example_inputs=x)
    assert torch.equal(torch.jit.load(path)(x), frozen(x))


def test_tuned_network_scripts_and_takes_no_images():
    layer, x = conv()
    frozen = cnnfast.freeze(layer, x, tune=True)
    assert torch.equal(torch.jit.script(frozen)(x), frozen(x))
    assert frozen(x[:0]).shape == (0, 64, 24, 24)
    assert "tuned: 0 layers timed" in str(cnnfast.freeze(layer, x[:0], tune=True).report())
