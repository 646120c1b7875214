"""Training: it learns, the fused network as the plain one, as its settings say."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_support import QUICK, few_images, run, with_dropout

from cnnfast import models
from cnnfast.benchmarking.plain import get_plain
from cnnfast.train import Epoch, Settings, TrainingError, build, choose_device, evaluate, predict, train
from cnnfast.training.settings import DEFAULTS, settings_for


@pytest.fixture(scope="module")
def splits():
    return few_images()


def test_epoch_line_is_that_of_the_notes(splits, capsys):
    train(build(QUICK), *splits, QUICK, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    pattern = r"epoch \d+, loss \d+\.\d{4}, train acc [01]\.\d{3}, test acc [01]\.\d{3}, time \d+\.\d sec"
    assert len(lines) == 2 and all(re.fullmatch(pattern, line) for line in lines)
    example = "epoch 1, loss 1.5870, train acc 0.402, test acc 0.419, time 68.1 sec"
    assert str(Epoch(1, 1.587, 0.402, 0.419, 68.1)) == example


@pytest.mark.parametrize("optimizer, lr", [("sgd", 0.05), ("adam", 0.002)])
def test_training_learns(optimizer, lr, splits):
    settings = Settings("residual_net", epochs=4, batch_size=32, optimizer=optimizer, lr=lr, momentum=0.5)
    _, history = run(settings, splits)
    assert history[-1].loss < 0.6 * history[0].loss
    assert history[-1].test_accuracy > 0.5


@pytest.mark.parametrize("model", ["lenet", "residual_net"])
def test_fused_network_trains_as_the_plain_one(model, splits):
    settings = Settings(model, epochs=2, batch_size=32, optimizer="sgd", lr=0.02, momentum=0.5)
    torch.manual_seed(0)
    plain = get_plain(model)
    fused = models.load_plain_state_dict(models.get_model(model), plain.state_dict())
    _, expected = run(settings, splits, plain)
    _, found = run(settings, splits, fused)
    for one, other in zip(found, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.test_accuracy == pytest.approx(other.test_accuracy, abs=0.011)  # a tie or two


def test_plain_twin_has_no_layer_of_ours():
    def ours(net):
        return [layer for layer in net.modules() if type(layer).__module__.startswith("cnnfast.nn")]

    assert ours(build(QUICK)) and not ours(build(replace(QUICK, fuse=False)))


def test_linear_schedule_falls_to_zero(splits):
    settings = replace(QUICK, epochs=2, schedule="linear", optimizer="sgd", lr=0.1)
    rates = []
    net = build(settings)
    original = torch.optim.SGD.step

    def step(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        run(settings, splits, net)
    assert rates == pytest.approx([0.1 * (1 - k / 20) for k in range(20)])


def test_infinite_loss_stops_and_keeps_the_checkpoint(splits, tmp_path):
    with pytest.raises(TrainingError, match="loss became"):
        run(replace(QUICK, optimizer="sgd", model="residual_net", lr=1e20), splits, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_bfloat16_trains(splits):
    _, history = run(replace(QUICK, model="residual_net", dtype="bfloat16"), splits)
    assert math.isfinite(history[-1].loss) and history[-1].loss < history[0].loss


def test_resize_reaches_the_network(splits):
    seen = set()
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 10))
    net.register_forward_pre_hook(lambda _, inputs: seen.add(tuple(inputs[0].shape[1:])))
    run(replace(QUICK, epochs=1, resize=40), splits, net)
    assert seen == {(1, 40, 40)}


def test_predict_is_in_eval_mode_and_restores_train_mode(splits):
    net = with_dropout().train()
    images = splits[1][0].unsqueeze(1).float() / 255
    classes = predict(net, images)
    assert torch.equal(classes, predict(net, images)) and net.training  # dropout would differ
    share = evaluate(net, [(images[:150], splits[1][1][:150]), (images[150:], splits[1][1][150:])])
    assert share == pytest.approx((classes == splits[1][1]).double().mean().item())


WRONG = {
    "epochs": 0,
    "batch_size": -1,
    "lr": 0.0,
    "momentum": 1.0,
    "optimizer": "rmsprop",
    "schedule": "cosine",
    "dtype": "float16",
    "resize": 0,
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_setting_is_an_error_that_names_it(name):
    with pytest.raises(TrainingError, match=name):
        replace(QUICK, **{name: WRONG[name]})


def test_defaults_are_those_of_the_notes():
    assert settings_for("residual_net") == Settings("residual_net", 10, 64, "sgd", 0.01, momentum=0.5)
    assert settings_for("nin").lr == 0.002 and settings_for("vgg11_small").resize == 224
    assert settings_for("googlenet").resize == 96
    changed = settings_for("residual_net", epochs=1, lr=None)
    assert changed.epochs == 1 and changed.lr == 0.01
    assert set(models.list_models()) <= set(DEFAULTS)


def test_unknown_device_is_an_error():
    with pytest.raises(TrainingError, match="abacus"):
        choose_device("abacus")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
