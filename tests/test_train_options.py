"""Training on some of the images, with augmentation, for some minutes; what the log then tells."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_support import QUICK, assert_same_state, few_images, run, with_dropout

from cnnfast import data
from cnnfast import train as training
from cnnfast.__main__ import main
from cnnfast.train import Settings, TrainingError, build, subset, train
from cnnfast.training import checkpoint
from cnnfast.training.augment import FlipCropColour
from cnnfast.training.settings import settings_for


@pytest.fixture(scope="module")
def splits():
    return few_images()


def test_subset_is_drawn_from_the_seed_without_repetition(splits):
    numbered = (splits[0][0], torch.arange(320))
    images, numbers = subset(numbered, replace(QUICK, train_images=100))
    assert len(images) == 100 and len(set(numbers.tolist())) == 100
    assert torch.equal(images, splits[0][0][numbers])
    assert torch.equal(numbers, subset(numbered, replace(QUICK, train_images=100))[1])
    assert not torch.equal(numbers, subset(numbered, replace(QUICK, train_images=100, seed=1))[1])
    assert torch.equal(numbers[:50], subset(numbered, replace(QUICK, train_images=50))[1])
    assert torch.equal(subset(numbered, QUICK)[1], numbered[1])


def test_more_images_than_there_are_is_an_error(splits):
    with pytest.raises(TrainingError, match="train_images is 321, there are 320"):
        run(replace(QUICK, train_images=321), splits)
    with pytest.raises(TrainingError, match="train_images is 0"):
        replace(QUICK, train_images=0)


def test_training_sees_the_subset_alone_and_the_log_says_so(splits, tmp_path):
    seen = []
    net = build(QUICK)
    net.register_forward_pre_hook(lambda net, inputs: seen.append(len(inputs[0])) if net.training else None)
    run(replace(QUICK, train_images=72), splits, net, out=tmp_path)
    assert seen == 2 * [32, 32, 8]
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["images"] == {"train": 72, "test": 200} and log["settings"]["train_images"] == 72
    assert log["processes"] == 1 and log["machine"]
    assert all(0 <= epoch["waited"] <= epoch["seconds"] for epoch in log["epochs"])


def test_resumed_curve_is_bitwise_the_same_with_dropout_resize_and_augmentation(splits, tmp_path):
    def make():
        return nn.Sequential(nn.AdaptiveAvgPool2d(28), *with_dropout())

    settings = Settings(
        "net", epochs=3, batch_size=48, optimizer="adam", lr=0.01, resize=36, augment=True, train_images=200
    )
    whole, expected = run(settings, splits, make())
    run(replace(settings, epochs=1), splits, make(), out=tmp_path)
    torch.rand(5)
    other = make()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)  # everything must come from the checkpoint
    resumed, history = run(settings, splits, other, out=tmp_path, resume=True)
    assert history == expected
    assert_same_state(whole, resumed)
    _, without = run(replace(settings, augment=False), splits, make())
    assert without != expected


def test_only_training_images_are_augmented(splits, monkeypatch):
    calls = []

    class Counted(FlipCropColour):
        def __call__(self, images, generator):
            calls.append(len(images))
            return super().__call__(images, generator)

    monkeypatch.setattr(training, "FlipCropColour", Counted)
    run(replace(QUICK, epochs=1, augment=True), splits)
    assert calls == 10 * [32]
    run(QUICK, splits)
    assert len(calls) == 10


def test_alexnet_augments_and_the_others_do_not():
    assert settings_for("alexnet").augment and settings_for("alexnet_paper").augment
    assert not settings_for("nin").augment
    assert not settings_for("alexnet", augment=False).augment


def test_limit_ends_after_an_epoch_and_resuming_goes_on(splits, tmp_path):
    settings = replace(QUICK, epochs=3)
    whole, expected = run(settings, splits)
    _, first = run(settings, splits, out=tmp_path, limit_minutes=0)
    assert len(first) == 1
    resumed, history = run(settings, splits, out=tmp_path, resume=True, limit_minutes=60)
    assert history == expected
    assert_same_state(whole, resumed)


def test_checkpoint_from_before_a_setting_resumes(splits, tmp_path):
    run(replace(QUICK, epochs=1), splits, out=tmp_path)
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    for name in ("augment", "train_images"):
        del state["settings"][name]
    del state["random"]["other_processes"], state["history"][0]["waited"]
    torch.save(state, tmp_path / "checkpoint.pt")
    _, history = run(QUICK, splits, out=tmp_path, resume=True)
    assert history == run(QUICK, splits)[1]
    with pytest.raises(TrainingError, match="augment False → True"):
        run(replace(QUICK, augment=True), splits, out=tmp_path, resume=True)


def test_checkpoint_of_several_processes_does_not_resume_in_one(splits, tmp_path):
    run(replace(QUICK, epochs=1), splits, out=tmp_path)
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    state["random"]["other_processes"] = [checkpoint.random_state()]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="trained by 2 processes, not by 1"):
        train(build(QUICK), *splits, QUICK, device="cpu", out=tmp_path, resume=True)


def test_command_takes_the_options(splits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "fashion_mnist", dict(zip(("train", "test"), splits, strict=True)).__getitem__)
    command = ["train", "--model", "lenet", "--batch-size", "32", "--augment", "--train-images", "64"]
    command += ["--dtype", "bf16"]  # short for bfloat16
    assert main([*command, "--limit-minutes", "0", "--out", str(tmp_path)]) == 0
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["settings"]["augment"] and log["settings"]["dtype"] == "bfloat16"
    assert log["images"]["train"] == 64 and len(log["epochs"]) == 1
    assert main(["train", "--out", str(tmp_path), "--resume", "--epochs", "2"]) == 0
    assert "epoch 2, loss" in capsys.readouterr().out
    assert main(["train", "--out", str(tmp_path), "--resume", "--no-augment"]) == 2
    assert "augment True → False" in capsys.readouterr().err


@pytest.mark.gpu
def test_resizing_on_a_gpu_gives_nearly_the_same_pixels(splits):
    (one, _), (other, _) = (
        next(data.batches(*splits[1], 100, resize=96, device=device)) for device in ("cpu", "cuda")
    )
    assert other.is_cuda
    assert (one - other.cpu()).abs().max() < 1.5 / 255
