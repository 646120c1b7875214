"""Exported files give the same results in a fresh process and appear whole or not at all."""

import os
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace

import pytest
import torch
from fuse.networks import images, make
from torch import nn

import cnnfast
from cnnfast import _ext
from cnnfast.export import FORMATS, ExportError, fresh_process, library_path
from cnnfast.plan.nodes import FORMAT

from .support import avx_instructions, loaded, name_of, record_of, skip_without_packages

needs_extension = pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def assert_same(path, network, x, format="torchscript"):
    with torch.no_grad():
        torch.testing.assert_close(loaded(path, format)(x), network(x), rtol=0, atol=1e-5)


@needs_extension
@pytest.mark.parametrize("format", FORMATS)
def test_export_frozen(format, tmp_path):
    skip_without_packages(format)
    name = "resnet"
    frozen = cnnfast.freeze(make(name), images(name))
    path = cnnfast.export(frozen, tmp_path / name_of(format), format=format, example_inputs=images(name, 1))
    assert_same(path, frozen, images(name, 6), format)
    assert os.listdir(tmp_path) == [path.name]
    facts = record_of(path, format)
    assert facts["cnnfast"] == cnnfast.__version__ and facts["torch"] == torch.__version__
    assert facts["format"] == "cnnfast.export" and facts["format_version"] == "1"
    assert facts["network"] == "frozen" and facts["plan_format"] == str(FORMAT)
    if format == "aoti":  # other CPUs run it: run_plan chooses its kernels there, the rest is plain code
        assert avx_instructions(path, tmp_path / "package") == 0


@pytest.mark.parametrize("format", FORMATS)
def test_export_fused(format, tmp_path):
    skip_without_packages(format)
    if format == "onnx" and not _ext.AVAILABLE:
        pytest.skip("a network is frozen for ONNX")
    fused = cnnfast.fuse(make("resnet")).train()
    before = {key: value.clone() for key, value in fused.state_dict().items()}
    path = cnnfast.export(fused, tmp_path / name_of(format), format=format, example_inputs=images("resnet"))
    assert fused.training and fused.stem[1].training  # the file has evaluation mode, the module keeps its own
    assert all(torch.equal(value, before[key]) for key, value in fused.state_dict().items())
    assert_same(path, fused.eval(), images("resnet", 5), format)
    assert record_of(path, format)["network"] == "modules"
    if format == "aoti" and _ext.AVAILABLE and _ext.active_isa() != "portable":
        assert avx_instructions(path, tmp_path / "package") > 0  # so that they are found where there are any


@pytest.mark.parametrize("name", ["lenet", "residual_net"])
def test_export_networks_of_cnnfast(name, tmp_path):
    net = cnnfast.models.get_model(name)
    path = cnnfast.export(net, tmp_path / "net.pt", example_inputs=torch.randn(2, 1, 28, 28), verify=False)
    assert_same(path, net.eval(), torch.randn(3, 1, 28, 28))


def test_export_without_example_only_loads(tmp_path):
    fused = cnnfast.fuse(make("lenet"))
    assert_same(cnnfast.export(fused, str(tmp_path / "net.pt")), fused, images("lenet"))


def test_export_warns_nothing_about_torch_jit(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cnnfast.export(cnnfast.fuse(make("lenet")), tmp_path / "net.pt", verify=False)


class Speaking(nn.Module):
    """Cannot be scripted, and has a deprecation of its own to tell."""

    def forward(self, x, *rest):
        warnings.warn("of the user's code", DeprecationWarning, stacklevel=1)
        return x + 1


def test_export_silences_deprecations_of_torch_alone_and_in_its_own_calls_alone(tmp_path):
    before, x = list(warnings.filters), torch.randn(2, 3)
    with pytest.warns(RuntimeWarning, match="a trace"), pytest.warns(DeprecationWarning, match="user's code"):
        cnnfast.export(Speaking(), tmp_path / "net.pt", example_inputs=x)
    with pytest.warns(DeprecationWarning, match="user's code"):
        cnnfast.export(Speaking(), tmp_path / "net.pt2", format="pt2", example_inputs=x, verify=False)
    assert warnings.filters == before
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit"):
        torch.jit.script(nn.ReLU())


class Unscriptable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x, *rest):
        return self.conv(x) + sum(rest)


def test_export_falls_to_a_trace_and_says_so(tmp_path):
    model, x = Unscriptable(), torch.randn(2, 1, 5, 5)
    with pytest.raises(ExportError, match="example_inputs=x"):
        cnnfast.export(model, tmp_path / "net.pt")
    with pytest.warns(RuntimeWarning, match="a trace"):
        path = cnnfast.export(model, tmp_path / "net.pt", example_inputs=x)
    assert_same(path, model, torch.randn(4, 1, 7, 7))


class SizeBound(nn.Module):
    """Its trace holds for the batch size of the example alone."""

    def forward(self, x, *rest):
        return x * torch.arange(len(x)).view(-1, 1)


def test_export_refuses_a_file_with_other_results(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"old")
    with pytest.warns(RuntimeWarning, match="a trace"), pytest.raises(ExportError, match="fresh process"):
        cnnfast.export(SizeBound(), tmp_path / "net.pt", example_inputs=torch.randn(2, 3))
    assert (tmp_path / "net.pt").read_bytes() == b"old" and os.listdir(tmp_path) == ["net.pt"]
    with pytest.warns(RuntimeWarning, match="a trace"):
        cnnfast.export(
            SizeBound(), tmp_path / "net.pt", example_inputs=torch.randn(2, 3), dynamic_batch=False
        )
    assert torch.equal(
        loaded(tmp_path / "net.pt", "torchscript")(torch.ones(2, 3)), SizeBound()(torch.ones(2, 3))
    )


def test_export_compares_numbers(tmp_path, monkeypatch):
    changed = fresh_process._FRESH_PROCESS.replace("network(*args)", "network(*args) * 1.001")
    assert changed != fresh_process._FRESH_PROCESS
    monkeypatch.setattr(fresh_process, "_FRESH_PROCESS", changed)
    with pytest.raises(ExportError, match="other results"):
        cnnfast.export(make("lenet"), tmp_path / "net.pt", example_inputs=images("lenet"))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "tflite"}, "one of 'torchscript', 'pt2', 'aoti', 'onnx', not 'tflite'"),
        ({"format": "pt2"}, "needs example_inputs"),
        ({"format": "aoti"}, "needs example_inputs"),
        ({"format": "onnx"}, "needs example_inputs"),
        ({"format": "pt2", "example_inputs": images("lenet")}, r"net\.pt2"),
        ({"format": "aoti", "example_inputs": images("lenet")}, r"net\.pt2"),
        ({"format": "onnx", "example_inputs": images("lenet")}, r"net\.onnx"),
    ],
)
def test_export_refuses_in_words(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        cnnfast.export(make("lenet"), tmp_path / "net.pt", **options)
    with pytest.raises(TypeError, match="torch.nn.Module"):
        cnnfast.export(torch.relu, tmp_path / "net.pt")
    with pytest.raises(TypeError, match="scripted already"):
        cnnfast.export(torch.jit.script(make("lenet")), tmp_path / "net.pt")
    assert not os.listdir(tmp_path)


def test_export_pt2_with_fixed_batch(tmp_path):
    fused, x = cnnfast.fuse(make("lenet")), images("lenet", 1)
    path = cnnfast.export(fused, tmp_path / "n.pt2", format="pt2", example_inputs=x, dynamic_batch=False)
    assert_same(path, fused, x, "pt2")
    with pytest.raises((RuntimeError, AssertionError)):
        loaded(path, "pt2")(images("lenet", 2))


@needs_extension
def test_export_onnx_of_what_has_no_plan_is_an_error(tmp_path):
    skip_without_packages("onnx")

    class Shuffled(nn.Module):
        def forward(self, x):
            return x.roll(1)

    x = torch.randn(1, 2, 3, 3)
    with pytest.raises(ExportError, match="written from a plan(?s:.*)roll"):
        cnnfast.export(Shuffled(), tmp_path / "net.onnx", format="onnx", example_inputs=x)
    eager = cnnfast.freeze(Shuffled(), x, allow_eager=True)
    joined = cnnfast.freeze(nn.Sequential(nn.Conv2d(2, 2, 1), Shuffled()), x)
    for network in (eager, joined):
        with pytest.raises(ExportError, match="one plan for the whole network(?s:.*)roll"):
            cnnfast.export(network, tmp_path / "net.onnx", format="onnx", example_inputs=x)
    assert not os.listdir(tmp_path)


def test_export_without_the_package_onnx_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExportError, match="pip install onnx"):
        cnnfast.export(make("lenet"), tmp_path / "net.onnx", format="onnx", example_inputs=images("lenet"))


def test_export_aoti_without_a_compiler_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExportError, match="no compiler was found(?s:.*)pt2"):
        cnnfast.export(make("lenet"), tmp_path / "net.pt2", format="aoti", example_inputs=images("lenet"))


@needs_extension
@pytest.mark.parametrize("format", ["pt2", "aoti", "onnx"])
def test_export_killed_while_writing_leaves_the_old_file(format, tmp_path, monkeypatch):
    """The name appears at the end: what breaks in the middle leaves nothing, and the old file whole."""
    skip_without_packages(format)
    path = tmp_path / name_of(format)
    path.write_bytes(b"old")

    def killed(network, file, *arguments):
        assert file.parent.parent == tmp_path and file.stat().st_size > 1000  # beside it, whole
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt

    monkeypatch.setattr(fresh_process, "check", killed)
    write = FORMATS[format].write
    if format == "aoti":  # compiling takes long and is tested elsewhere
        write = FORMATS["pt2"].write
        monkeypatch.setitem(FORMATS, "aoti", replace(FORMATS["aoti"], write=write))
    with pytest.raises(KeyboardInterrupt):
        cnnfast.export(make("lenet"), path, format=format, example_inputs=images("lenet"))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]


@needs_extension
def test_library_loads_by_itself(tmp_path):
    """A process needs torch, the library and the file, not this package; torch names a missing operator."""
    assert library_path().is_file()
    frozen, x = cnnfast.freeze(make("notes"), images("notes")), images("notes")
    path = cnnfast.export(frozen, tmp_path / "net.pt", verify=False)
    torch.save(x, tmp_path / "x")
    code = """
        import sys, torch
        library, net, x = sys.argv[1:]
        try:
            torch.jit.load(net)
        except RuntimeError as error:
            assert "cnnfast::run_plan" in str(error), error
            assert "import cnnfast first" in str(error), error
        else:
            raise SystemExit("loaded without the library")
        torch.ops.load_library(library)
        assert "cnnfast" not in sys.modules
        print(torch.jit.load(net)(torch.load(x)).tolist())
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(library_path()), str(path)]
    result = subprocess.run([*command, str(tmp_path / "x")], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    torch.testing.assert_close(torch.tensor(eval(result.stdout)), frozen(x), rtol=0, atol=1e-5)


@needs_extension
def test_exported_archive_with_a_damaged_plan_is_an_error(tmp_path):
    """torch checks nothing in its archives; the plan checks itself."""
    frozen = cnnfast.freeze(make("lenet"), images("lenet"))
    script = torch.jit.script(frozen)
    script.weights[100] += 1e-3
    torch.jit.save(script, tmp_path / "net.pt")
    with pytest.raises(RuntimeError, match="damaged"):
        torch.jit.load(tmp_path / "net.pt")(images("lenet"))


@needs_extension
def test_exported_archive_of_a_newer_format_says_what_to_do(tmp_path):
    script = torch.jit.script(cnnfast.freeze(make("lenet"), images("lenet")))
    script.plan[1] = FORMAT + 1
    torch.jit.save(script, tmp_path / "net.pt")
    with pytest.raises(RuntimeError, match=f"has format version {FORMAT + 1}, .*; update"):
        torch.jit.load(tmp_path / "net.pt")(images("lenet"))


@needs_extension
def test_exported_program_of_a_newer_format_says_what_to_do(tmp_path):
    frozen = cnnfast.freeze(make("lenet"), images("lenet"))
    options = {"format": "pt2", "example_inputs": images("lenet"), "verify": False}
    program = torch.export.load(cnnfast.export(frozen, tmp_path / "net.pt2", **options))
    program.state_dict["plan"][1] = FORMAT + 1
    torch.export.save(program, tmp_path / "newer.pt2")
    with pytest.raises(RuntimeError, match=f"has format version {FORMAT + 1}, .*; update"):
        loaded(tmp_path / "newer.pt2", "pt2")(images("lenet"))
