"""Training in two processes under torchrun: both end with the weights of one process; the first writes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from training_support import QUICK, few_images, run

import cnnfast
from cnnfast.data import batches
from cnnfast.train import Settings, TrainingError, build, train
from cnnfast.training import checkpoint
from cnnfast.training.processes import Processes, current, joined

# Without kinks. Some of residual_net's ReLUs lie so close to theirs that, with six seeds of seven, weights
# changed by 1e-7 of their size end 6e-5 to 2e-3 apart; lenet's end 4e-7 apart.
SETTINGS = Settings("lenet", epochs=2, batch_size=32, optimizer="sgd", lr=0.9, momentum=0.5, augment=True)

# Each process keeps its weights, buffers and history in a file of its own.
# No thread of the group may outlive it: one that frees a tensor while the interpreter ends aborts it.
PROGRAM = """
import json, sys
from dataclasses import asdict
from pathlib import Path
import torch
from cnnfast.train import Settings, build, train
from cnnfast.training.processes import current, joined

folder, resume, noisy = sys.argv[1], sys.argv[2] == "resume", sys.argv[3] == "noisy"
settings = Settings(**json.loads(sys.argv[4]))
with joined("cpu") as device:
    splits = torch.load(f"{folder}/splits.pt")
    net = build(settings)
    if noisy:  # what lenet lacks: buffers, and random numbers in the forward pass
        net.conv1 = torch.nn.Sequential(net.conv1, torch.nn.BatchNorm2d(6), torch.nn.Dropout(0.3))
    history = train(net, *splits, settings, device=device, out=f"{folder}/run", resume=resume)
    state = {"net": net.state_dict(), "history": [asdict(epoch) for epoch in history]}
    torch.save(state, f"{folder}/rank{current().rank}.pt")
threads = [name.read_text() for name in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
"""


def torchrun(*arguments, seconds=240):
    """Two processes; they and all that they have started are gone afterwards, whatever happens."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cnnfast.__file__).parents[1])}
    with subprocess.Popen(
        [*command, "--nproc-per-node", "2", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its processes
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, out, err


def trained_by_two(folder, settings, splits, resume=False, noisy=True):
    """What the two processes end with, and what torchrun printed."""
    (folder / "program.py").write_text(PROGRAM)
    torch.save(splits, folder / "splits.pt")
    how = "resume" if resume else "start"
    arguments = [folder, how, "noisy" if noisy else "plain", json.dumps(asdict(settings))]
    code, out, err = torchrun(folder / "program.py", *arguments)
    assert code == 0, out + err
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)], out


def without_times(history):
    return [
        {name: epoch[name] for name in ("epoch", "loss", "train_accuracy", "test_accuracy")}
        for epoch in history
    ]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert not [key for key in one if not torch.equal(one[key], other[key])]


@pytest.mark.slow
def test_two_processes_train_as_one_does_on_the_joint_batch(tmp_path):
    splits = few_images()
    (first, second), out = trained_by_two(tmp_path, SETTINGS, splits, noisy=False)
    assert_equal(first["net"], second["net"])
    assert first["history"] == second["history"]
    assert out.count("epoch ") == 2  # the first alone reports

    alone, history = run(SETTINGS, splits)
    for key, expected in alone.state_dict().items():
        torch.testing.assert_close(first["net"][key], expected, rtol=1e-5, atol=1e-5)
    for found, expected in zip(first["history"], history, strict=True):
        assert found["loss"] == pytest.approx(expected.loss, rel=1e-4)
        assert found["train_accuracy"] == pytest.approx(expected.train_accuracy, abs=0.007)  # a tie or two
        assert found["test_accuracy"] == pytest.approx(expected.test_accuracy, abs=0.011)
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["model"].keys() == alone.state_dict().keys()
    assert json.loads((tmp_path / "run" / "log.json").read_text())["processes"] == 2
    assert (tmp_path / "run" / "curves.png").is_file()


@pytest.mark.slow
def test_two_processes_resume_to_the_bit(tmp_path):
    """With batch norm and dropout, of which every process has statistics and random numbers of its own."""
    splits = few_images()
    settings = replace(QUICK, augment=True)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, _ = trained_by_two(tmp_path / "whole", settings, splits)
    trained_by_two(tmp_path / "parts", replace(settings, epochs=1), splits)
    parts, out = trained_by_two(tmp_path / "parts", settings, splits, resume=True)
    assert out.count("epoch ") == 1 and "epoch 2" in out
    assert_equal(whole[0]["net"], whole[1]["net"])
    assert_equal(parts[0]["net"], parts[1]["net"])
    assert_equal(whole[0]["net"], parts[0]["net"])
    assert without_times(whole[0]["history"]) == without_times(parts[0]["history"])


@pytest.mark.slow
def test_train_command_under_torchrun(tmp_path):
    out = tmp_path / "run"
    command = ["-m", "cnnfast", "train", "--model", "lenet", "--epochs", "1", "--device", "cpu", "--out", out]
    code, printed, err = torchrun(*command, "--train-images", "256", "--batch-size", "64")
    assert code == 0, printed + err
    lines = printed.strip().splitlines()
    assert lines[0].startswith("epoch 1, loss ") and lines[1].startswith(str(out)) and len(lines) == 2
    code, printed, err = torchrun(
        *command, "--batch-size", "33", "--overwrite", "--device", "cpu", "--out", out
    )
    assert code != 0 and "batch_size is 33" in err


def test_parts_cover_every_image_once():
    items = torch.arange(11)
    parts = [Processes(rank, 3).part(items) for rank in range(3)]
    assert sorted(torch.cat(parts).tolist()) == items.tolist()


def test_a_last_batch_is_shared_equally_and_the_rest_left_out():
    (images, labels), _ = few_images()
    sizes = [
        [len(found) for found, _ in batches(images[:39], labels[:39], 16, part=(rank, 4))]
        for rank in range(4)
    ]
    assert sizes == 4 * [[4, 4, 1]]
    with pytest.raises(ValueError, match="no multiple of 3"):
        next(batches(images, labels, 16, part=(0, 3)))


def test_without_torchrun_there_is_one_process():
    assert current() == Processes(0, 1) and current().first
    with joined("cpu") as device:
        assert device == "cpu" and current().count == 1
    assert Processes().gather("x") == ["x"] and Processes().mean(0.5, 3, torch.device("cpu")) == 0.5


def test_device_with_a_number_under_torchrun_is_an_error(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(TrainingError, match="cuda:1"), joined("cuda:1"):
        pass


def test_batch_that_cannot_be_shared_is_an_error(monkeypatch):
    monkeypatch.setattr("cnnfast.train.current", lambda: Processes(0, 3))
    with pytest.raises(TrainingError, match="batch_size is 32: no multiple of 3"):
        train(build(QUICK), *few_images(), QUICK, device="cpu")
