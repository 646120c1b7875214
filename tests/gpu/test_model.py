"""What docs/gpu.md says of bytes is what the model reckons, and kernels that memory bounds waste none."""

from pathlib import Path

import pytest

from cnnfast.benchmarking.gpu import model

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"
ROWS = model.figures()


def test_document_is_up_to_date():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert model.updated(text, model.document(ROWS)) == text, (
        "run: python -m cnnfast.benchmarking.gpu.model docs/gpu.md"
    )


def test_document_tells_what_is_measured_from_what_is_modelled():
    """Measured figures stand in one section, under the device's name; the model's under its own heading."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert model.HEADING == "## Modelled, not measured" and text.count(model.HEADING) == 1
    sections = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    assert sections["Measured"].startswith("NVIDIA ")
    others = [body for title, body in sections.items() if title not in ("Measured", model.HEADING[3:])]
    assert others and not any(" µs " in body for body in others)


@pytest.mark.parametrize("chip", model.CHIPS, ids=lambda chip: chip.name)
def test_kernels_bound_by_memory_issue_little_more_than_they_must(chip):
    rows = [row for row in ROWS if row.chip == chip and row.bound == "memory"]
    assert len(rows) > 50
    wasteful = [f"{row.kernel} {row.label}: {row.ratio:.3f}" for row in rows if row.ratio > model.LIMIT]
    assert not wasteful
    assert all(row.ratio >= 1 for row in ROWS)


def test_networks_and_kernels_are_covered():
    assert {layer.network for layer in model.LAYERS} == {"ResNet", "GoogLeNet", "DenseNet"}
    kernels = {row.kernel for row in ROWS}
    assert {"forward", "input gradient", "weight gradient", "normalise + ReLU + add"} <= kernels


def test_waves_by_hand():
    """A 1×1 convolution whose weights fit: every operand once. A 3×3: two rows more per wave."""
    pointwise = model.Layer("ResNet", 256, 56, 64, 1)
    row = model.convolution(pointwise, model.CHIPS[0])
    pixels = model.BATCH * 56 * 56
    assert row.compulsory == row.issued == 2 * (pixels * 256 + 256 * 64 + pixels * 64) + 2 * 4 * 64
    three = model.convolution(model.Layer("ResNet", 64, 56, 64, 3), model.CHIPS[0])
    extra = three.issued - three.compulsory
    assert extra > 0 and extra % (2 * 2 * 56 * 64) == 0


def test_a_tile_that_rereads_shows():
    """The model is no formality: weights beyond L2 are read once a wave."""
    from dataclasses import replace

    small = replace(model.CHIPS[0], l2=2**16)
    layer = model.Layer("ResNet", 512, 28, 512, 3)
    assert model.convolution(layer, small).ratio > 1.5 > model.convolution(layer, model.CHIPS[0]).ratio


def test_constants_are_those_of_the_kernels():
    """What the model takes from CUDA sources."""
    folder = DOCUMENT.parents[1] / "csrc" / "cuda"
    text = "".join(path.read_text() for path in sorted(folder.glob("*.h")) + sorted(folder.glob("*.cuh")))
    for line in (
        f"kLeastRows = {model.LEAST_ROWS};",
        f"kLanes = {model.LANES};",
        f"kBlockThreads = {model.BLOCK_THREADS};",
        f"kStatisticsBlocks = {model.STATISTICS_BLOCKS},",
        f"kBackwardBlocks = {model.BACKWARD_BLOCKS};",
    ):
        assert line in text, line
