"""Loading the extension: what is said where it cannot be used, and what importing cnnfast may cost."""

import json
import subprocess
import sys

import pytest
import torch

import cnnfast
from cnnfast import _ext


@pytest.fixture(autouse=True)
def _no_request(monkeypatch):
    monkeypatch.delenv("CNNFAST_REFERENCE", raising=False)


def test_extension_for_another_torch_is_named_in_words(monkeypatch, tmp_path):
    library = tmp_path / "libcnnfast.so"
    library.write_bytes(b"not loaded")
    monkeypatch.setattr(_ext, "_LIBRARY", library)
    reason = _ext._reason_not_to_load({"torch": "2.9.0+cpu"})
    assert (
        f"built for torch 2.9.0+cpu, the imported torch is {torch.__version__}: rebuild with `pip" in reason
    )


def test_extension_not_built_is_named_in_words(monkeypatch, tmp_path):
    monkeypatch.setattr(_ext, "_BUILD_INFO", tmp_path / "_build_info.json")
    assert _ext._read_build_info() is None
    assert "not built: run `pip install --no-build-isolation" in _ext._reason_not_to_load(None)


def test_extension_that_does_not_load_is_named_in_words(monkeypatch, tmp_path):
    library, info = tmp_path / "libcnnfast.so", tmp_path / "_build_info.json"
    library.write_bytes(b"no library at all")
    info.write_text(json.dumps({"torch": torch.__version__}))
    monkeypatch.setattr(_ext, "_LIBRARY", library)
    monkeypatch.setattr(_ext, "_BUILD_INFO", info)
    monkeypatch.delenv("CNNFAST_CPU_ISA", raising=False)
    assert "libcnnfast.so does not load" in _ext._load()
    monkeypatch.setenv("CNNFAST_CPU_ISA", "avx2")
    with pytest.raises(OSError):
        _ext._load()


@pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")
def test_build_info_tells_what_runs():
    info = _ext.build_info()
    assert info["torch"] == torch.__version__ and info["version"] == cnnfast.__version__
    assert _ext.active_isa() in info["isas"] and "portable" in info["isas"]


def test_import_is_light():
    program = (
        "import sys, cnnfast; print(*{'matplotlib', 'rich', 'torchvision', 'triton'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_public_names_are_functions():
    assert all(callable(getattr(cnnfast, name)) for name in ("fuse", "freeze", "export", "load", "summary"))
    assert set(cnnfast.__all__) <= set(dir(cnnfast))
