"""Files are written under one instruction set and loaded under the others with equal answers."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from fuse.networks import images, make

import cnnfast
from cnnfast import _ext

NETWORKS = ("lenet", "branches", "blocks")  # every kind of layer
pytestmark = pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")

_COMMON = """
    import json, sys, torch, cnnfast
    from cnnfast import _ext
    torch.set_num_threads(1)
"""
# examples.pt: a name and an input per network; one of them goes through the slower format too
_WRITE = """
    from fuse.networks import make
    folder = sys.argv[1]
    examples = torch.load("examples.pt")
    for name, x in examples.items():
        torch.manual_seed(0)
        frozen = cnnfast.freeze(make(name), x)
        frozen.save(f"{folder}/{name}.cnnfast")
        cnnfast.export(frozen, f"{folder}/{name}.pt", verify=False)
        if name == "blocks":
            cnnfast.export(frozen, f"{folder}/{name}.pt2", format="pt2", example_inputs=x, verify=False)
    print(json.dumps(_ext.active_isa()))
"""
_READ = """
    examples, answers = torch.load("examples.pt"), {}
    loaders = {
        "cnnfast": cnnfast.load, "pt": torch.jit.load, "pt2": lambda path: torch.export.load(path).module()
    }
    for folder in sys.argv[1:]:
        for name, x in examples.items():
            for suffix, load in loaders.items():
                if suffix == "pt2" and name != "blocks":
                    continue
                with torch.no_grad():
                    answers[f"{folder}/{name}.{suffix}"] = load(f"{folder}/{name}.{suffix}")(x)
    torch.save(answers, f"answers-{_ext.active_isa()}.pt")
    print(json.dumps(_ext.active_isa()))
"""


def available_isas():
    from cnnfast import _info

    return _info.available_isas()


def checksum(path):
    """The SHA-256 that a file records of its content."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()["sha256"]


def under(isa, code, folder, *arguments):
    """Run code in a process that is held to an instruction set."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(_COMMON) + textwrap.dedent(code)]
    environment = {
        **os.environ,
        "CNNFAST_CPU_ISA": isa,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    result = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, cwd=folder, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == isa


def test_files_of_every_instruction_set_run_under_every_other(tmp_path):
    """A file holds plain weights: they are packed where it is loaded."""
    isas = available_isas()
    assert "portable" in isas
    examples = {name: images(name) for name in NETWORKS}
    torch.save(examples, tmp_path / "examples.pt")
    for isa in isas:
        (tmp_path / isa).mkdir()
        under(isa, _WRITE, tmp_path, isa)
    for name in NETWORKS:  # what is written does not depend on the CPU that writes
        assert len({checksum(tmp_path / isa / f"{name}.cnnfast") for isa in isas}) == 1
    for isa in isas:
        under(isa, _READ, tmp_path, *isas)
    for isa in isas:
        answers = torch.load(tmp_path / f"answers-{isa}.pt")
        assert len(answers) == len(isas) * (2 * len(NETWORKS) + 1)
        for name, x in examples.items():
            torch.manual_seed(0)
            with torch.no_grad():
                wanted = make(name).eval()(x)
            largest = wanted.abs().max().item()
            own = [answers[f"{folder}/{name}.cnnfast"] for folder in isas]
            for folder in isas:
                for suffix in ("cnnfast", "pt", "pt2") if name == "blocks" else ("cnnfast", "pt"):
                    got = answers[f"{folder}/{name}.{suffix}"]
                    assert torch.equal(got, own[0])  # whoever wrote the file: the same bits where it is read
                    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5 * max(largest, 1e-3))


def test_instruction_set_that_is_missing_is_an_error_in_words(tmp_path):
    """Where a file is loaded under an instruction set that the machine lacks, nothing falls back silently."""
    frozen = cnnfast.freeze(make("lenet"), images("lenet"))
    path = frozen.save(tmp_path / "net.cnnfast")
    code = f"import cnnfast; cnnfast.load({str(path)!r})"
    environment = {**os.environ, "CNNFAST_CPU_ISA": "sse9", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode != 0 and "sse9" in result.stderr and "CNNFAST_CPU_ISA" in result.stderr
