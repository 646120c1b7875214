"""The demo's own checks: they must be able to fail. `make demo` runs it whole."""

import pytest
import torch

from cnnfast import _ext, data, demo
from cnnfast.benchmarking.plain import get_plain
from cnnfast.demo import DemoError, agreement

needs_extension = pytest.mark.skipif(not _ext.AVAILABLE, reason=f"needs compiled operators: {_ext.REASON}")


@pytest.fixture
def outputs():
    """1000×10 numbers whose best two are never a tie."""
    values = torch.rand(1000, 10)
    values[torch.arange(1000), torch.randint(10, (1000,))] = 2.0
    return values


def test_agreement_of_equal_outputs(outputs):
    words = agreement(outputs, outputs.clone())
    assert "1,000 of 1,000" in words and "tie" not in words


def test_agreement_counts_a_tie_within_rounding(outputs):
    eager, frozen = outputs.clone(), outputs.clone()
    eager[5, :2] = torch.tensor([3.0, 3.0 - 1e-6])
    frozen[5, :2] = torch.tensor([3.0 - 1e-6, 3.0])
    words = agreement(eager, frozen)
    assert "999 of 1,000" in words and "a tie within rounding for 1" in words


@pytest.mark.parametrize("wrong", [2.5, float("nan"), float("inf")])
def test_another_class_is_an_error(outputs, wrong):
    frozen = outputs.clone()
    frozen[7, (outputs[7].argmax() + 1) % 10] = wrong
    if wrong != wrong:
        outputs = frozen  # not a number in both: no agreement either
    with pytest.raises(DemoError, match="disagree"):
        agreement(outputs, frozen)


def test_differing_classes_are_counted(tmp_path):
    classes = torch.randint(10, (50,)).byte()
    found = tmp_path / "classes"
    found.write_bytes(bytes(classes.tolist()))
    demo._require_same("somebody", found, classes)
    changed = bytearray(classes.tolist())
    changed[3] += 1
    found.write_bytes(changed[:-2])
    with pytest.raises(DemoError, match="somebody: 3 of 50"):
        demo._require_same("somebody", found, classes)


@needs_extension
def test_low_accuracy_is_an_error(monkeypatch, tmp_path):
    images, labels = data.fashion_mnist("test")
    few = (images[:64], labels[:64])
    with pytest.raises(DemoError, match=r"below 0\.88"):
        demo.trained(get_plain("residual_net"), few, few, tmp_path)


def test_without_the_extension_it_stops_and_says_why(monkeypatch):
    monkeypatch.setattr(_ext, "AVAILABLE", False)
    monkeypatch.setattr(_ext, "REASON", "they are not built")
    with pytest.raises(DemoError, match="they are not built"):
        demo.main([])


@needs_extension
def test_exported_network_gives_the_same_classes_in_a_fresh_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo.cpp_example, "why_not", lambda: "left out by this test")
    images, labels = data.fashion_mnist("test")
    some = (images[:600], labels[:600])
    network, classes = demo.exported(get_plain("residual_net"), some[0], tmp_path)
    demo.same_everywhere(network, classes, some, tmp_path)
    assert "SKIPPED, left out by this test" in capsys.readouterr().out
    with pytest.raises(DemoError, match="600 of 600"):
        demo.same_everywhere(network, (classes + 1) % 10, some, tmp_path)
