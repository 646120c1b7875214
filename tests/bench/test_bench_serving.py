"""The load of the serving benchmark: what it counts, and that every contender answers rightly."""

import threading
import time

import pytest

from cnnfast import _ext
from cnnfast.benchmarking import serving


def test_percentiles_are_values_that_occurred():
    values = [float(i) for i in range(1, 101)]
    assert serving.percentile(values, 50) == 50.0 and serving.percentile(values, 99) == 99.0
    assert serving.percentile([7.0], 99) == 7.0 and serving.percentile([1.0, 2.0], 99) == 2.0


def test_drive_counts_requests_images_and_latencies():
    seen, lock = [], threading.Lock()

    def call(batch):
        with lock:
            seen.append((threading.get_ident(), batch))
        time.sleep(batch)

    result = serving.drive([call, call], [(3, 0.01), (5, 0.03)], 0.4)
    assert len({ident for ident, _ in seen}) == 2
    assert len(seen) == result["requests"] + 4  # each client warmed up with each batch
    assert 0.01 <= result["p50_s"] <= result["p99_s"] < 0.2 and result["p99_s"] >= 0.03
    assert result["images_per_s"] == pytest.approx(2 * 8 / 0.04, rel=0.3)


def test_drive_raises_what_a_client_raised():
    def broken(batch):
        raise ValueError("out of range")

    with pytest.raises(ValueError, match="out of range"):
        serving.drive([lambda batch: None, broken], [(1, None)], 5.0)


@pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")
def test_serving_contenders_answer_rightly_and_are_timed():
    load = serving.Load(clients=2, threads=1, batches=(1, 3), seconds=0.2)
    rows = serving.compare("lenet", load)
    assert [row.contender for row in rows] == ["cnnfast_frozen", "onnxruntime", "openvino"]
    for row in rows:
        assert row.status in ("ok", "missing"), row.detail
        if row.status == "ok":
            assert row.requests > 0 and 0 < row.p50_s <= row.p99_s and row.images_per_s > 0
    assert rows[0].status == "ok" and "cnnfast_frozen" in serving.table(rows)


@pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")
def test_serving_reports_wrong_answers(monkeypatch, tmp_path):
    import torch

    prepare = serving.prepare

    def spoiled(network, load, folder):
        missing = prepare(network, load, folder)
        cases = torch.load(folder / "cases.pt")
        torch.save([(x, wanted + 1) for x, wanted in cases], folder / "cases.pt")
        return missing

    monkeypatch.setattr(serving, "prepare", spoiled)
    load = serving.Load(clients=1, threads=1, batches=(1,), seconds=0.1)
    (row,) = serving.compare("lenet", load, ["cnnfast_frozen"])
    assert row.status == "failed" and "wrong answers" in row.detail
    assert "failed" in serving.table([row])
    with pytest.raises(ValueError, match="known: cnnfast_frozen"):
        serving.compare("lenet", load, ["tensorrt"])
