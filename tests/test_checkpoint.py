"""Runs of training: the same every time, resumed to the bit; their files whole or absent."""

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_support import QUICK, assert_same_state, few_images, run, with_dropout

from cnnfast.train import Settings, TrainingError, build, train
from cnnfast.training import checkpoint


@pytest.fixture(scope="module")
def splits():
    return few_images()


def test_training_is_the_same_every_time(splits):
    first, history = run(QUICK, splits)
    torch.rand(7)  # what the process drew before does not matter
    second, again = run(QUICK, splits)
    assert history == again
    assert_same_state(first, second)
    _, other = run(replace(QUICK, seed=1), splits)
    assert other != history


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("make", [with_dropout, lambda: build(QUICK)], ids=["dropout", "lenet"])
def test_resumed_curve_is_bitwise_the_same(make, optimizer, splits, tmp_path):
    settings = Settings("net", epochs=4, batch_size=48, optimizer=optimizer, lr=0.01, momentum=0.9)
    whole, expected = run(settings, splits, make())
    run(replace(settings, epochs=2), splits, make(), out=tmp_path)
    torch.rand(5)
    other = make()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)  # everything must come from the checkpoint
    resumed, history = run(settings, splits, other, out=tmp_path, resume=True)
    assert history == expected
    assert_same_state(whole, resumed)


def test_resumed_linear_schedule_is_bitwise_the_same(splits, tmp_path):
    settings = replace(QUICK, epochs=3, schedule="linear")
    whole, expected = run(settings, splits)

    def stop_after_one(epoch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(build(settings), *splits, settings, device="cpu", out=tmp_path, report=stop_after_one)
    resumed, history = run(settings, splits, out=tmp_path, resume=True)
    assert history == expected
    assert_same_state(whole, resumed)
    with pytest.raises(TrainingError, match="epochs 3 → 5"):  # the rates before would have been others
        run(replace(settings, epochs=5), splits, out=tmp_path, resume=True)


def test_resuming_with_other_settings_is_an_error(splits, tmp_path):
    run(replace(QUICK, epochs=1), splits, out=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match=r"lr 0\.002 → 0\.5"):
        run(replace(QUICK, lr=0.5), splits, out=tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_resuming_without_a_checkpoint_is_an_error(splits, tmp_path):
    with pytest.raises(TrainingError, match="does not exist"):
        run(QUICK, splits, out=tmp_path, resume=True)
    with pytest.raises(TrainingError, match="out"):
        run(QUICK, splits, resume=True)


def test_log_and_curves_are_written(splits, tmp_path):
    pytest.importorskip("matplotlib")
    _, history = run(QUICK, splits, out=tmp_path)
    log = json.loads((tmp_path / "log.json").read_text())
    assert [epoch["loss"] for epoch in log["epochs"]] == [epoch.loss for epoch in history]
    assert log["settings"]["model"] == "lenet" and log["torch"] == torch.__version__
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "curves.png", "log.json"]


DAMAGE = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "text": lambda content: b"hello",
    "cut end": lambda content: content[:-30],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoint_is_an_error_that_names_it(damage, splits, tmp_path):
    run(replace(QUICK, epochs=1), splits, out=tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TrainingError, match="damaged") as caught:
        run(QUICK, splits, out=tmp_path, resume=True)
    assert str(path) in str(caught.value)


class _Touch:
    """Unpickled, it creates a file: what a checkpoint of a stranger might do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def _plain_pickle(value, path):
    path.write_bytes(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("write", [torch.save, _plain_pickle])
def test_checkpoint_runs_no_code(write, tmp_path):
    write({"format": checkpoint.FORMAT, "model": _Touch(tmp_path / "touched")}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError):
        checkpoint.load(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "touched").exists()


def test_newer_checkpoint_says_so(tmp_path):
    torch.save({"format": checkpoint.FORMAT + 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="update cnnfast"):
        checkpoint.load(tmp_path / "checkpoint.pt")


def test_failed_save_leaves_the_old_checkpoint(splits, tmp_path, monkeypatch):
    run(replace(QUICK, epochs=1), splits, out=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def save_half(state, path):
        path.write_bytes(before[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", save_half)
    with pytest.raises(OSError, match="No space left"):
        run(QUICK, splits, out=tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# Dies by SIGKILL in the second epoch: in its save, with half a file written, or in the middle of training.
KILLED = """
import os, signal, sys
import torch
from cnnfast.data import fashion_mnist
from cnnfast.train import Settings, build, train
from cnnfast.training import checkpoint
out, where = sys.argv[1:]
settings = Settings("lenet", epochs=2, batch_size=32, optimizer="adam", lr=0.002)
splits = [(x[:n], y[:n]) for (x, y), n in ((fashion_mnist("train"), 320), (fashion_mnist("test"), 200))]
net = build(settings)
original = torch.save
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def save_half(state, path):
    original(state, path)
    os.truncate(path, 5000)
    die()
def arm(epoch):
    if where == "saving":
        checkpoint.torch.save = save_half
    else:
        calls = iter(range(4))
        def count(*_):
            if next(calls, None) is None:
                die()
        net.register_forward_hook(count)
train(net, *splits, settings, device="cpu", out=out, report=arm)
"""


@pytest.mark.parametrize("where", ["saving", "training"])
def test_killed_training_resumes_to_the_same_curve(where, splits, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), where], env=environment, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(checkpoint.load(tmp_path / "checkpoint.pt")["history"]) == 1
    whole, expected = run(QUICK, splits)
    resumed, history = run(QUICK, splits, out=tmp_path, resume=True)
    assert history == expected
    assert_same_state(whole, resumed)
