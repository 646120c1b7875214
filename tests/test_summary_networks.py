"""The summary of every network: the shapes that the notes print, parameters, multiply-adds."""

from itertools import groupby

import pytest

import cnnfast
import cnnfast.nn as fast
from cnnfast import models
from cnnfast.__main__ import main
from cnnfast.benchmarking.plain import INPUT_SHAPES, get_plain

# Channels and height (= width) behind the layers, repetitions left out; a number alone is a flat layer.
SHAPES = {
    "lenet": "1×28 6×28 6×14 16×10 16×5 400 120 84 10",
    "alexnet": "96×54 96×26 256×26 256×12 384×12 256×12 256×5 6400 10",
    "alexnet_paper": "96×55 96×27 256×27 256×13 384×13 256×13 256×6 9216 1000",
    "vgg11": "64×112 128×56 256×28 512×14 512×7 25088 4096 10",
    "vgg11_small": "8×112 16×56 32×28 64×14 64×7 3136 512 10",
    "nin": "96×54 96×26 256×26 256×12 384×12 384×5 10×5 10×1 10",
    "nin_single_1x1": "96×54 96×26 256×26 256×12 384×12 384×5 10×5 10×1 10",
    "googlenet": "64×48 64×24 192×24 192×12 256×12 480×12 480×6 512×6 528×6 832×6 832×3 "
    "1024×3 1024×1 1024 10",
    "inception_net": "10×24 10×12 88×12 20×8 20×4 88×4 1408 10",
    "residual_net": "16×24 16×12 32×8 32×4 512 10",
    "resnet18": "64×48 64×24 128×12 256×6 512×3 512×1 512 10",
    "resnet18_preact": "64×48 64×24 128×12 256×6 512×3 512×1 512 10",
    "densenet": "64×48 64×24 192×24 96×12 224×12 112×6 240×6 120×3 248×3 248×1 248 10",
}


def summary_of(name, depth=1, batch=2):
    return cnnfast.summary(models.get_model(name), (batch, *INPUT_SHAPES[name]), depth)


def text(shape):
    if len(shape) == 3:
        assert shape[1] == shape[2]
    return "×".join(map(str, shape[:2]))


def test_every_network_is_here():
    assert set(models.list_models()) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_the_notes(name):
    rows = summary_of(name).rows
    assert all(row.output_shape[0] == 2 for row in rows)
    assert [shape for shape, _ in groupby(text(row.output_shape[1:]) for row in rows)] == SHAPES[name].split()


@pytest.mark.parametrize("name", SHAPES)
def test_sums_are_those_of_the_plain_network(name, golden):
    ours = summary_of(name)
    plain = cnnfast.summary(get_plain(name), (1, *INPUT_SHAPES[name]))
    assert ours.parameters == plain.parameters == golden[name]["num_parameters"]
    assert ours.parameters == sum(row.parameters for row in ours.rows)
    assert ours.multiply_adds == plain.multiply_adds == sum(row.multiply_adds for row in ours.rows)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["inception_net", "residual_net"])
def test_a_fused_network_has_the_rows_of_the_original(name):
    plain = get_plain(name).train()
    fused = cnnfast.fuse(plain)
    assert cnnfast.summary(fused, (1, 1, 28, 28)).rows == cnnfast.summary(plain, (1, 1, 28, 28)).rows
    assert fused.training and isinstance(fused, type(plain))


def test_multiply_adds_of_a_network_are_known():
    assert summary_of("vgg11").multiply_adds == pytest.approx(15.1e9 / 2, rel=0.01)
    assert summary_of("googlenet").multiply_adds == pytest.approx(0.552e9 / 2, rel=0.01)


@pytest.mark.parametrize(
    ("block", "shape", "rows"),
    [
        (fast.Inception(8, 4, (4, 6), (2, 4), 5), (1, 8, 6, 6), 7),
        (fast.InceptionA(8), (1, 8, 6, 6), 8),
        (fast.DenseBlock(2, 8, 4), (1, 8, 6, 6), 2),
        (fast.LinearBNAct(8, 4), (3, 8), 1),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "forward") else None,
)
def test_blocks_show_their_layers(block, shape, rows):
    found = cnnfast.summary(block, shape, depth=2)
    assert len([row for row in found.rows if "." not in row.name or row.name.startswith("layers.")]) == rows
    assert sum(row.multiply_adds for row in found.rows) == found.multiply_adds > 0


@pytest.mark.parametrize("name", SHAPES)
def test_command_prints_every_network(name, capsys):
    assert main(["summary", "--model", name]) == 0
    out = capsys.readouterr().out
    assert "total" in out and "1×10" in out
