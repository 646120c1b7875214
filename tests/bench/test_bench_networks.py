"""Every network has its benchmarks: inference at batch 1 and 16, training; all contenders in one group."""

from collections import defaultdict

import pytest
import torch
from test_bench_cli import run_pytest

from cnnfast import models
from cnnfast.benchmarking import ModelSpec, cli, parity
from cnnfast.benchmarking.case import DTYPES, Case
from cnnfast.benchmarking.plain import BUILDERS

WANTED = {
    "inference": {"eager", "eager_channels_last", "compile", "cnnfast_fused", "cnnfast_frozen"},
    "training": {
        f"{name}{memory}"
        for name in ("eager", "eager_channels_last", "compile", "cnnfast_fused")
        for memory in ("", "_kept")
    },
}
# Filling and running them in float64 takes too long for every test run.
LARGE = {"alexnet", "alexnet_paper", "vgg11", "nin", "nin_single_1x1"}


def groups(file):
    """Contenders (with the dtype, where tests have one) by (network, batch), from the names of the tests."""
    done = run_pytest("--collect-only", file)
    assert done.returncode == 0, done.stdout + done.stderr
    found = defaultdict(set)
    for line in done.stdout.splitlines():
        if "::" not in line:
            continue
        identity = line.split("[", 1)[1].rstrip("]")
        network = max((name for name in BUILDERS if identity.startswith(name + "-")), key=len)
        batch, contender = identity.removeprefix(network + "-").split("-", 1)
        found[network, int(batch)].add(contender)
    return found


def test_inference_of_every_network_at_both_batches():
    found = groups("bench/bench_inference.py")
    assert found.keys() == {(name, batch) for name in models.list_models() for batch in (1, 16)}
    assert all(contenders >= WANTED["inference"] for contenders in found.values())


def test_training_of_every_network():
    found = groups("bench/bench_training.py")
    assert sorted(name for name, _ in found) == models.list_models()
    wanted = {f"{contender}-{dtype}" for contender in WANTED["training"] for dtype in DTYPES}
    assert all(contenders >= wanted for contenders in found.values())


def test_every_network_has_a_plain_twin():
    assert set(models.list_models()) == set(BUILDERS)


def test_all_networks_by_one_word():
    assert cli.parser().parse_args(["--model", "all"]).model == list(BUILDERS)
    assert cli.parser().parse_args(["--model", "lenet,nin"]).model == ["lenet", "nin"]


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in LARGE])
def test_reference_of_a_network_tells_right_from_wrong(name, mode, tmp_path):
    """parity.prepare raises where outputs of different images are too alike."""
    case = Case(ModelSpec(name).resolved(), 2, mode, "float32", 1, str(tmp_path))
    parity.prepare(case)
    saved = torch.load(case.batches_file)
    assert len(saved["inputs"]) == parity.BATCHES
    assert saved["inputs"][0].shape == (2, *case.spec.input_shape)
