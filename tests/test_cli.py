"""`python -m cnnfast`: every command, its errors in one line, its light imports."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import cnnfast.train
from cnnfast import _ext, data, doctor
from cnnfast.__main__ import COMMANDS, main
from cnnfast.benchmarking.plain import get_plain

needs_extension = pytest.mark.skipif(not _ext.AVAILABLE, reason=f"needs compiled operators: {_ext.REASON}")


@pytest.fixture
def few_images(monkeypatch):
    """Fashion-MNIST with 96 images in each split, for a quick training run."""
    whole = data.fashion_mnist
    monkeypatch.setattr(data, "fashion_mnist", lambda split: tuple(part[:96] for part in whole(split)))


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"python -m cnnfast {command}" in capsys.readouterr().out


def test_module_runs_and_lists_its_commands():
    result = python("-m", "cnnfast", "--help")
    assert result.returncode == 0
    assert all(command in result.stdout for command in COMMANDS)


def test_without_a_command_it_says_what_there_is(capsys):
    assert main([]) == 2
    err = capsys.readouterr().err
    assert all(command in err for command in COMMANDS)


def test_unknown_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["trian"])
    assert ended.value.code == 2
    assert "trian" in capsys.readouterr().err


def test_import_is_light():
    heavy = {"matplotlib", "rich", "tqdm", "triton", "torchvision", "pytest", "sympy", "torch._dynamo"}
    code = (
        f"import sys, torch; old = {{*sys.modules}}; import cnnfast; print({heavy} & {{*sys.modules}} - old)"
    )
    result = python("-c", code)
    assert result.stdout == "set()\n", result.stdout + result.stderr


def test_error_of_ours_is_one_line(capsys, tmp_path):
    assert main(["data", "--root", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("cnnfast data: ") and err.count("\n") == 1 and str(tmp_path) in err


def test_error_of_others_keeps_its_traceback(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "main", broken)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_doctor_tells_what_runs(capsys):
    assert main(["doctor"]) == (0 if _ext.AVAILABLE else 1)
    out = capsys.readouterr().out
    assert all(f"{title}\n" in out for title in ("built", "machine", "will run", "data"))
    assert torch.__version__ in out
    assert (f"compiled kernels, {_ext.active_isa()}" if _ext.AVAILABLE else _ext.REASON) in out
    assert ("AMX tiles" in out) == _ext.AVAILABLE


def test_doctor_finds_a_compiler_behind_a_launcher(monkeypatch):
    launcher = shutil.which("env")
    monkeypatch.setenv("CXX", "env g++")
    assert dict(doctor.has())["compiler"] == f"{launcher} g++"
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert dict(doctor.has())["compiler"] == "no no-such-compiler found"


def test_doctor_without_the_extension_says_why(capsys, monkeypatch):
    monkeypatch.setattr(_ext, "AVAILABLE", False)
    monkeypatch.setattr(_ext, "REASON", "the compiled operators are not built: run this")
    monkeypatch.setattr(_ext, "build_info", dict)
    assert main(["doctor"]) == 1
    assert "not built: run this" in capsys.readouterr().out
    assert main(["doctor", "--isas"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "not built: run this" in captured.err


def test_doctor_tells_that_the_data_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(data.fetch, "places", lambda: [tmp_path])
    main(["doctor"])
    assert "python -m cnnfast data" in capsys.readouterr().out


@needs_extension
def test_doctor_isas_are_words_best_first(capsys):
    assert main(["doctor", "--isas"]) == 0
    out = capsys.readouterr().out
    isas = out.split()
    assert out == " ".join(isas) + "\n" and isas[-1] == "portable" and len(set(isas)) == len(isas)


def test_cmake_path_holds_the_package_file(capsys):
    assert main(["cmake-path"]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "cnnfast-config.cmake").is_file()


def test_data_checks_and_writes_plain_files(capsys, tmp_path):
    assert main(["data", "--plain", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "60,000 images" in out and "10,000 images" in out
    for split, files in data.FILES.items():
        for array, file in zip(data.fashion_mnist(split), files, strict=True):
            assert torch.equal(data.read_checked(tmp_path / file.name, file).long(), array.long())


def test_summary_prints_every_layer(capsys):
    assert main(["summary", "--model", "residual_net", "--batch", "3"]) == 0
    out = capsys.readouterr().out
    assert "3×16×24×24" in out and "3×10" in out and "41,514" in out


def test_train_resumes_and_refuses_to_overwrite(few_images, tmp_path, capsys):
    out = str(tmp_path / "run")
    command = ["train", "--model", "lenet", "--batch-size", "32", "--out", out]
    assert main([*command, "--epochs", "1"]) == 0
    assert capsys.readouterr().out.count("epoch ") == 1
    assert main([*command, "--epochs", "1"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", "--out", out, "--resume", "--epochs", "3"]) == 0  # network and batch are the run's
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()[:-1]] == [
        "epoch 2",
        "epoch 3",
    ]
    assert main([*command, "--resume", "--lr", "3"]) == 2
    assert "lr 0.001 → 3.0" in capsys.readouterr().err
    assert main([*command, "--epochs", "1", "--overwrite"]) == 0


def test_train_needs_a_network(capsys):
    assert main(["train", "--epochs", "1"]) == 2
    assert "--model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--model", "lenett"])
    assert "lenet" in capsys.readouterr().err


def test_train_with_wrong_values_is_an_error(capsys, tmp_path):
    assert main(["train", "--model", "lenet", "--epochs", "0", "--out", str(tmp_path)]) == 2
    assert "epochs is 0" in capsys.readouterr().err


def test_interrupted_train_says_how_to_go_on(few_images, tmp_path, capsys, monkeypatch):
    calls = []

    def interrupt_in_the_second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    original = cnnfast.train.train_epoch
    monkeypatch.setattr(cnnfast.train, "train_epoch", interrupt_in_the_second)
    assert main(["train", "--model", "lenet", "--epochs", "2", "--out", str(tmp_path / "run")]) == 130
    captured = capsys.readouterr()
    assert captured.out.startswith("epoch 1, ") and "--resume" in captured.err
    assert (tmp_path / "run" / "checkpoint.pt").is_file()


@needs_extension
@pytest.mark.parametrize("options", [[], ["--fused"]], ids=["frozen", "fused"])
def test_exported_checkpoint_gives_the_networks_outputs(options, few_images, tmp_path, capsys):
    from cnnfast.cli.export import load

    assert main(["train", "--model", "lenet", "--epochs", "1", "--out", str(tmp_path)]) == 0
    assert main(["export", str(tmp_path / "checkpoint.pt"), *options]) == 0
    assert str(tmp_path / "lenet.pt") in capsys.readouterr().out
    net, _ = load(tmp_path / "checkpoint.pt")
    images = torch.rand(3, 1, 28, 28)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.testing.assert_close(torch.jit.load(tmp_path / "lenet.pt")(images), net(images))


def test_export_loads_a_state_dict_of_the_notes(tmp_path):
    from cnnfast.cli.export import load

    plain = get_plain("residual_net").eval()
    torch.save(plain.state_dict(), tmp_path / "weights.pt")
    net, settings = load(tmp_path / "weights.pt", "residual_net")
    images = torch.rand(2, 1, 28, 28)
    assert settings.model == "residual_net"
    with torch.no_grad():
        torch.testing.assert_close(net(images), plain(images))


def test_export_without_the_extension_is_an_error(capsys, monkeypatch):
    monkeypatch.setattr(_ext, "AVAILABLE", False)
    monkeypatch.setattr(_ext, "REASON", "they are not built")
    assert main(["export", "checkpoint.pt"]) == 2
    assert "they are not built" in capsys.readouterr().err


@needs_extension
def test_export_with_a_wrong_suffix_is_an_error(few_images, tmp_path, capsys):
    torch.save(get_plain("lenet").state_dict(), tmp_path / "weights.pt")
    command = ["export", str(tmp_path / "weights.pt"), "--model", "lenet", "--format", "pt2"]
    assert main([*command, "--out", str(tmp_path / "net.pt")]) == 2
    assert ".pt2" in capsys.readouterr().err
    assert main(command) == 0
    assert (tmp_path / "lenet.pt2").is_file()


@needs_extension
def test_export_to_onnx_from_the_command_line(few_images, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    plain = get_plain("residual_net").eval()
    torch.save(plain.state_dict(), tmp_path / "weights.pt")
    options = ["--model", "residual_net", "--format", "onnx"]
    assert main(["export", str(tmp_path / "weights.pt"), *options]) == 0
    assert "residual_net.onnx: residual_net, onnx, frozen" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "residual_net.onnx", providers=["CPUExecutionProvider"])
    images = torch.rand(3, 1, 28, 28)
    (got,) = session.run(None, {"input": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), plain(images), rtol=1e-4, atol=1e-4)


@needs_extension
def test_export_of_a_wrong_file_is_an_error(tmp_path, capsys):
    torch.save(get_plain("lenet").state_dict(), tmp_path / "weights.pt")
    path = str(tmp_path / "weights.pt")
    assert main(["export", str(tmp_path / "none.pt")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["export", path]) == 2
    assert "--model" in capsys.readouterr().err
    assert main(["export", path, "--model", "residual_net"]) == 2
    assert "does not fit residual_net" in capsys.readouterr().err
    (tmp_path / "weights.pt").write_bytes(b"nonsense")
    assert main(["export", path, "--model", "lenet"]) == 2
    assert "damaged" in capsys.readouterr().err
