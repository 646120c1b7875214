"""How long resnet18 takes to load, and to load and answer for the first time, weights packed."""

import warnings

import pytest
import torch

import cnnfast

LIMIT = 0.150  # seconds


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loading")
    frozen = cnnfast.freeze(cnnfast.models.get_model("resnet18").eval(), torch.randn(1, 1, 96, 96))
    frozen.save(folder / "net.cnnfast")
    cnnfast.export(frozen, folder / "net.pt", verify=False)
    return {cnnfast.load: folder / "net.cnnfast", torch.jit.load: folder / "net.pt"}


@pytest.mark.parametrize("first_call", [False, True], ids=["load", "load_and_first_call"])
@pytest.mark.parametrize("load", [cnnfast.load, torch.jit.load], ids=["cnnfast.load", "torch.jit.load"])
def test_loading_resnet18(load, first_call, files, benchmark):
    x = torch.randn(1, 1, 96, 96)

    def run():
        network = load(files[load])
        if first_call:
            network(x)

    benchmark.group = "loading resnet18"
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        benchmark.pedantic(run, rounds=7, warmup_rounds=1)
    if benchmark.stats is not None and not first_call:  # None with --benchmark-disable
        assert benchmark.stats.stats.median < LIMIT
