"""What counts as a right answer."""

import pytest
import torch
from safetensors.torch import save_file

import cnnfast
from cnnfast.benchmarking import parity
from cnnfast.benchmarking.case import Case, ModelSpec
from cnnfast.benchmarking.fill import fill_weights, images
from cnnfast.benchmarking.plain import get_plain

TINY = ModelSpec("fake_contenders:tiny", input_shape=(1, 4, 4))


def case(folder, spec=TINY, **changes):
    values = {"batch": 2, "mode": "inference", "dtype": "float32", "threads": 1, "folder": str(folder)}
    return Case(spec.resolved(), **{**values, **changes})


def test_output_error_is_the_largest_over_all_batches(tmp_path):
    reference = [torch.tensor([[1.0, -4.0]], dtype=torch.float64)] * 3
    outputs = [torch.tensor([[1.0, -4.0]]), torch.tensor([[1.0, -4.0003]]), torch.tensor([[1.0001, -4.0]])]
    result = parity.compare_outputs(case(tmp_path), reference, outputs)
    assert result.ok
    assert result.error == pytest.approx(3e-4, rel=1e-2)
    assert result.tolerance == pytest.approx(4e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -4.0005])
def test_output_outside_the_tolerance_is_wrong(tmp_path, value):
    reference = [torch.tensor([[1.0, -4.0]], dtype=torch.float64)] * 2
    outputs = [torch.tensor([[1.0, value]]), torch.tensor([[1.0, -4.0]])]
    assert not parity.compare_outputs(case(tmp_path), reference, outputs).ok


def test_bfloat16_allows_what_autocast_itself_is_off(tmp_path):
    reference, outputs = [torch.tensor([[1.0, -4.0]], dtype=torch.float64)], [torch.tensor([[1.0, -4.2]])]
    half = case(tmp_path, dtype="bfloat16")
    assert not parity.compare_outputs(half, reference, outputs, autocast_error=0.09).ok
    result = parity.compare_outputs(half, reference, outputs, autocast_error=0.15)
    assert result.ok
    assert result.tolerance == pytest.approx(0.3)


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.0), ("bfloat16", 1e-4)])
def test_prepare_measures_what_autocast_is_off(tmp_path, dtype, least):
    parity.prepare(half := case(tmp_path, dtype=dtype))
    error = torch.load(half.batches_file)["autocast_error"]
    assert least <= error <= 0.1 * (dtype == "bfloat16")


def test_output_of_another_shape_is_wrong_and_named(tmp_path):
    result = parity.compare_outputs(case(tmp_path), [torch.zeros(2, 10)], [torch.zeros(2, 1)])
    assert not result.ok
    assert "(2, 1) instead of (2, 10)" in str(result)


def test_prepare_writes_float64_answers_of_the_given_weights(tmp_path):
    net = get_plain("residual_net")
    fill_weights(net, seed=5)
    save_file(net.state_dict(), tmp_path / "trained.safetensors")
    spec = ModelSpec("residual_net", state_dict_path=str(tmp_path / "trained.safetensors"))
    prepared = case(tmp_path, spec)
    assert parity.prepare(prepared) == 2 * 2 * cnnfast.summary(net, (1, 1, 28, 28)).multiply_adds
    saved = torch.load(prepared.batches_file)
    assert len(saved["inputs"]) == parity.BATCHES
    assert saved["reference"][0].dtype == torch.float64
    net.double().eval()
    with torch.no_grad():
        torch.testing.assert_close(
            saved["reference"][1], net(saved["inputs"][1].double()), rtol=0, atol=1e-12
        )


def test_prepare_counts_three_times_the_operations_for_a_training_step(tmp_path):
    spec = ModelSpec("cnnfast.benchmarking.layers:linear", {"in_features": 16, "out_features": 10}, (1, 4, 4))
    assert parity.prepare(case(tmp_path, spec)) == 2 * 2 * 160
    assert parity.prepare(case(tmp_path, spec, mode="training")) == 3 * 2 * 2 * 160


def test_prepare_refuses_a_network_that_ignores_its_input(tmp_path):
    spec = ModelSpec("fake_contenders:constant", input_shape=(1, 4, 4))
    with pytest.raises(ValueError, match="too little beside the tolerance"):
        parity.prepare(case(tmp_path, spec))


def test_prepare_training_refuses_outputs_that_are_no_scores(tmp_path):
    spec = ModelSpec("cnnfast.benchmarking.layers:max_pool", {"kernel_size": 2, "stride": 2}, (1, 4, 4))
    with pytest.raises(ValueError, match=r"scores \(N, classes\)"):
        parity.prepare(case(tmp_path, spec, mode="training"))


GRADIENTS = torch.tensor([10.0, 1.0, 1e-12], dtype=torch.float64)
REFERENCE = {"loss": torch.tensor(2.0, dtype=torch.float64), "gradients": GRADIENTS}


@pytest.mark.parametrize(
    ("loss", "gradients", "ok"),
    [
        (2.0, [10.0, 1.0, 0.0], True),
        (2.0, [10.0, 1.004, 2e-3], True),
        (2.001, [10.0, 1.0, 0.0], False),
        (float("nan"), [10.0, 1.0, 0.0], False),
        (2.0, [10.0, 1.006, 0.0], False),
        (2.0, [10.0, 1.0, 1e-2], False),
        (2.0, [10.0, float("nan"), 0.0], False),
        (2.0, [10.0, 1.0], False),
    ],
)
def test_training_parity(loss, gradients, ok):
    result = parity.compare_training(
        REFERENCE, torch.tensor(loss), torch.tensor(gradients, dtype=torch.float64)
    )
    assert result.ok is ok


def test_missing_gradient_is_not_a_number():
    net = torch.nn.Linear(2, 2)
    net.weight.grad = torch.ones(2, 2)
    assert parity.gradient_norms(net)[0] == 2.0
    assert parity.gradient_norms(net)[1].isnan()


def test_images_differ_strongly_and_hold_neither_zeros_nor_denormals():
    batch = images(4, (3, 28, 28), seed=1)
    assert batch.min() >= 1e-3
    assert batch.max() < 1
    distances = torch.cdist(batch.flatten(1), batch.flatten(1))[~torch.eye(4, dtype=torch.bool)]
    assert distances.min() > 1.0
    assert not torch.equal(batch, images(4, (3, 28, 28), seed=2))
    assert torch.equal(batch, images(4, (3, 28, 28), seed=1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "guess"}, "mode is 'guess'.*inference, training"),
        ({"dtype": "int8"}, "dtype is 'int8'.*float32"),
        ({"batch": 0}, "batch is 0"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_case_names_a_bad_setting(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        case(tmp_path, **changes)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ModelSpec("lenett"), "'lenett'.*known: lenet"),
        (ModelSpec("fake_contenders:tiny"), r"needs input_shape=\(C, H, W\)"),
        (ModelSpec("lenet", state_dict_path="/nowhere/weights.pt"), "no file /nowhere/weights.pt"),
    ],
)
def test_spec_names_a_bad_setting(spec, words):
    with pytest.raises(ValueError, match=words):
        spec.resolved()
