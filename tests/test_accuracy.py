"""The page about training runs."""

import json
import shlex
from dataclasses import asdict, replace

import pytest
from training_support import few_images, run

from cnnfast.__main__ import main
from cnnfast.cli import train as train_command
from cnnfast.train import Epoch, build
from cnnfast.training.accuracy import command, page
from cnnfast.training.settings import settings_for


def log(settings, epochs=3, **more):
    history = [Epoch(k, 1 / k, 0.7 + k / 100, 0.8 - k / 100, 10.0 + k) for k in range(1, epochs + 1)]
    return {
        "settings": asdict(settings),
        "epochs": [asdict(epoch) for epoch in history],
        "images": {"train": settings.train_images or 60_000, "test": 10_000},
        "device": "cpu",
        "machine": "A CPU",
        "threads": 2,
        **more,
    }


def test_page_has_a_row_and_a_command_per_run():
    text = page([log(settings_for("nin", train_images=6000)), log(settings_for("residual_net"))])
    nin, residual = (line for line in text.splitlines() if "| A CPU, 2 threads |" in line)
    assert nin == (
        "| nin | adam lr 0.002, batch 128, resize 224 | 6,000 | 3 | 0.730 | 0.770 | 0.790 | 0.752 | 12.0 "
        "| A CPU, 2 threads |"
    )
    assert residual.startswith("| residual_net | sgd lr 0.01, momentum 0.5, batch 64 | 60,000 | 3 |")
    assert "python -m cnnfast train --model nin --epochs 3 --train-images 6000\n" in text
    assert "python -m cnnfast train --model residual_net --epochs 3\n" in text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lr": 0.0003, "optimizer": "adam", "schedule": "linear", "seed": 3},
        {"augment": True, "resize": 96, "train_images": 500, "dtype": "bfloat16"},
        {"fuse": False, "batch_size": 8},
    ],
)
def test_command_gives_the_settings_of_the_run(changes):
    settings = replace(settings_for("lenet", epochs=3), **changes)
    words = shlex.split(command(log(settings)))
    assert words[:4] == ["python", "-m", "cnnfast", "train"]
    found, _ = train_command._settings(train_command._parser().parse_args(words[4:]))
    assert found == settings
    several = command(log(settings, processes=2))
    assert several.startswith("torchrun --nproc-per-node 2 -m cnnfast train --model lenet")


def test_network_that_augments_by_default_says_where_it_did_not():
    settings = replace(settings_for("lenet"), model="alexnet", augment=False)
    assert "--no-augment" in command(log(settings))


def test_page_is_written_from_the_folders_of_runs(tmp_path, capsys):
    settings = settings_for("lenet", epochs=1, batch_size=32)
    run(settings, few_images(), build(settings), out=tmp_path / "one")
    out = tmp_path / "docs" / "accuracy.md"
    assert main(["accuracy", str(tmp_path / "one"), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert "| lenet | adam lr 0.001, batch 32 | 320 | 1 |" in out.read_text()
    assert main(["accuracy", str(tmp_path / "one" / "log.json")]) == 0
    assert capsys.readouterr().out == out.read_text()


@pytest.mark.parametrize("content", [None, "nonsense", "[]", json.dumps({"settings": {}, "epochs": []})])
def test_wrong_log_is_an_error_that_names_it(content, tmp_path, capsys):
    path = tmp_path / "log.json"
    if content is not None:
        path.write_text(content)
    assert main(["accuracy", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
