"""What the machine does at most: plausible figures, not thresholds that a busy machine could miss."""

import dataclasses

import pytest
import torch

import cnnfast
from cnnfast import _ext, limits
from cnnfast.benchmarking import machine
from cnnfast.limits import Limits, measure_cores, measure_hand_over, measure_limits

needs_extension = pytest.mark.skipif(not _ext.AVAILABLE, reason=f"needs compiled operators: {_ext.REASON}")
EXAMPLE = Limits(2, "avx512", 200e9, {"L2": 150e9, "memory": 20e9})


@needs_extension
def test_limits_are_plausible():
    measured = measure_limits(1)
    assert measured.threads == 1 and measured.isa == _ext.active_isa()
    assert 1e9 < measured.flops_per_s < 1e12  # of one core; far beyond: computed at compile time
    rates = measured.read_bytes_per_s
    assert list(rates)[-1] == "memory"
    assert all(1e8 < rate < 1e12 for rate in rates.values())
    assert rates.get("L2", rates["memory"]) >= rates["memory"] / 2


@needs_extension
def test_limits_are_measured_once_for_each_number_of_threads():
    before = torch.get_num_threads()
    assert measure_limits(1) is measure_limits(1)
    assert measure_limits() is measure_limits(before)
    assert torch.get_num_threads() == before
    assert measure_limits(before + 1).threads == before + 1


@needs_extension
def test_limit_operators_check_their_arguments():
    ops = torch.ops.cnnfast
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(RuntimeError, match="seconds must be finite"):
            ops.measure_arithmetic(seconds)
        with pytest.raises(RuntimeError, match="seconds must be finite"):
            ops.measure_reading(1 << 20, seconds, True)
    with pytest.raises(RuntimeError, match="bytes_per_thread must be at least 1024, not 1023"):
        ops.measure_reading(1023, 0.0, True)
    assert ops.measure_reading(1024, 0.0, True) > 0 and ops.measure_reading(1500, 0.0, False) > 0
    assert ops.measure_arithmetic(0.0) > 0


@needs_extension
def test_hand_over_is_plausible():
    before = torch.get_num_threads()
    assert measure_hand_over(1) is None
    assert 1e-9 < measure_hand_over(2) < 1e-3  # between two threads of one core even: a switch of both
    assert 1e-9 < measure_hand_over(before + 3) < 1e-3
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError, match="seconds must be finite"):
        torch.ops.cnnfast.measure_hand_over(-1.0)
    with pytest.raises(ValueError, match="threads must be at least 1, not 0"):
        measure_hand_over(0)


@needs_extension
def test_cores_compute_what_the_limits_say_at_most():
    before = torch.get_num_threads()
    assert 1e8 < measure_cores(1) < 2 * measure_limits(1).flops_per_s
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="threads must be at least 1, not 0"):
        measure_cores(0)


@pytest.mark.parametrize("threads", [0, -1])
def test_limits_of_no_threads_are_an_error(threads):
    with pytest.raises(ValueError, match=f"threads must be at least 1, not {threads}"):
        cnnfast.measure_limits(threads)


def test_limits_without_the_extension_say_why(monkeypatch):
    monkeypatch.setattr(_ext, "AVAILABLE", False)
    monkeypatch.setattr(_ext, "REASON", "they are not built")
    with pytest.raises(RuntimeError, match="they are not built"):
        measure_limits()


def test_limits_in_words_and_as_data():
    assert str(EXAMPLE) == "2 threads, avx512: 200 GFLOP/s; GB/s read: 150 from L2, 20 from memory"
    assert str(dataclasses.replace(EXAMPLE, threads=1)).startswith("1 thread, ")
    assert Limits(**EXAMPLE.to_dict()) == EXAMPLE


def test_attainable_is_the_lower_of_two_roofs():
    assert EXAMPLE.attainable(1.0) == 20e9
    assert EXAMPLE.attainable(1.0, "L2") == 150e9
    assert EXAMPLE.attainable(11.0) == 200e9


MIB = 1 << 20


@pytest.mark.parametrize(
    ("threads", "shares", "wanted"),
    [
        (2, {"L2": MIB, "L3": 16 * MIB}, {"L2": MIB // 2, "L3": 8 * MIB, "memory": 64 * MIB}),
        (60, {"L2": 2 * MIB, "L3": MIB}, {"L2": MIB, "L3": 3 * MIB, "memory": 8 * MIB}),
        (128, {"L2": MIB, "L3": 4 * MIB}, {"L2": MIB // 2, "L3": 2 * MIB, "memory": 8 * MIB}),
        (4, {}, {"memory": 64 * MIB}),
    ],
    ids=["usual", "small_third_cache", "capped", "unknown"],
)
def test_buffers_fit_what_they_measure(threads, shares, wanted, monkeypatch):
    monkeypatch.setattr(machine, "cache_shares", lambda count: shares if count == threads else None)
    assert limits._buffers(threads) == wanted


def test_cache_shares_divide_what_is_shared(tmp_path, monkeypatch):
    caches = [("1", "Data", "32K", "0"), ("1", "Instruction", "32K", "0"), ("2", "Unified", "2M", "0,4")]
    for place, values in enumerate([*caches, ("3", "Unified", "32768K", "0-3,8-11")]):
        folder = tmp_path / f"index{place}"
        folder.mkdir()
        for name, value in zip(("level", "type", "size", "shared_cpu_list"), values, strict=True):
            (folder / name).write_text(value + "\n")
    (tmp_path / "index9").mkdir()  # a cache that says nothing
    found = machine._first_core_caches(str(tmp_path))
    monkeypatch.setattr(machine, "_first_core_caches", lambda: found)
    assert machine.caches() == {"L1d": "32K", "L1i": "32K", "L2": "2M", "L3": "32768K"}
    assert machine.cache_shares(1) == {"L1d": 32 << 10, "L2": 2 * MIB, "L3": 32 * MIB}
    assert machine.cache_shares(6) == {"L1d": 32 << 10, "L2": MIB, "L3": 32 * MIB // 6}
    assert machine.cache_shares(64) == {"L1d": 32 << 10, "L2": MIB, "L3": 4 * MIB}
