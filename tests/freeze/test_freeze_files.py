"""FrozenNet.save and cnnfast.load: the same network comes back, or an error that says what to do."""

import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from fuse.networks import NETWORKS, images, make
from torch import nn

import cnnfast
from cnnfast.freeze import FileFormatError
from cnnfast.plan import files

from .support import needs_extension

pytestmark = needs_extension


@pytest.mark.parametrize("name", NETWORKS)
def test_save_and_load(name, tmp_path):
    frozen = cnnfast.freeze(make(name), images(name))
    path = frozen.save(tmp_path / "net.cnnfast")
    loaded = cnnfast.load(path)
    x = images(name, 4)
    assert torch.equal(loaded(x), frozen(x))
    assert repr(loaded) == repr(frozen) and str(loaded.report()) == str(frozen.report())
    assert torch.equal(cnnfast.load(loaded.save(tmp_path / "again"))(x), frozen(x))
    assert os.listdir(tmp_path) and not [file for file in os.listdir(tmp_path) if file.startswith(".")]


def test_saved_file_is_plain_safetensors_with_json(tmp_path):
    from safetensors import safe_open

    path = cnnfast.freeze(make("lenet"), images("lenet")).save(tmp_path / "net.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {"weights", "plan"}
    assert metadata["format"] == "cnnfast.frozen" and metadata["cnnfast"] == cnnfast.__version__
    assert json.loads(metadata["network"])["names"] and len(metadata["sha256"]) == 64


def test_network_without_constants_is_saved(tmp_path):
    x = torch.randn(2, 3, 5, 5)
    frozen = cnnfast.freeze(nn.MaxPool2d(2), x)
    assert torch.equal(cnnfast.load(frozen.save(tmp_path / "net"))(x), frozen(x))


def test_archive_of_torch_is_named(tmp_path):
    frozen = cnnfast.freeze(make("lenet"), images("lenet"))
    path = cnnfast.export(frozen, tmp_path / "net.pt", verify=False)
    with pytest.raises(FileFormatError, match="torch.jit.load loads TorchScript"):
        cnnfast.load(path)


def test_loaded_network_is_independent_of_the_file(tmp_path):
    frozen = cnnfast.freeze(make("lenet"), images("lenet"))
    path = frozen.save(tmp_path / "net")
    loaded = cnnfast.load(path)
    path.write_bytes(b"")
    assert torch.equal(loaded(images("lenet")[:1] * 0), frozen(images("lenet")[:1] * 0))


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A small network's file, its bytes, an input and the right answer."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randn(2, 1, 4, 4)
    frozen = cnnfast.freeze(model, x)
    path = frozen.save(tmp_path_factory.mktemp("small") / "net")
    return path.read_bytes(), x, frozen(x)


def load_bytes(content, tmp_path):
    path = tmp_path / "damaged"
    path.write_bytes(content)
    return cnnfast.load(path)


def with_metadata(content, change):
    """The file with other metadata, and a checksum that fits it again."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    body = content[8 + length :]
    change(header)
    import safetensors.torch

    tensors = safetensors.torch.load(content)
    header["__metadata__"]["sha256"] = files._digest(tensors, header["__metadata__"])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def in_metadata(key, value):
    return lambda header: header["__metadata__"].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (in_metadata("format_version", "2"), "format version 2, written by cnnfast .*update cnnfast"),
        (in_metadata("format_version", "one"), "unknown format version"),
        (in_metadata("format", "other"), "holds no frozen network"),
        (in_metadata("network", "{}"), "lacks the description"),
        (in_metadata("network", "[1"), "lacks the description"),
        (in_metadata("network", '{"title": 1, "rows": [{"x": 1}], "notes": [], "names": []}'), "lacks"),
        (
            lambda header: header.pop("__metadata__") and header.update(__metadata__={}),
            "holds no frozen network",
        ),
    ],
)
def test_changed_metadata_is_an_error_in_words(change, words, small_file, tmp_path):
    with pytest.raises(FileFormatError, match=words):
        load_bytes(with_metadata(small_file[0], change), tmp_path)


def test_consistent_file_with_a_foreign_plan_is_an_error(small_file, tmp_path):
    """The library checks the plan once more: here the file's checksum fits, and the plan's does not."""
    import safetensors.torch

    tensors = safetensors.torch.load(small_file[0])
    plan = tensors["plan"].clone()
    plan[12] += 1
    network = {"title": "t", "rows": [], "notes": [], "names": ["a"] * 5}
    path = files.write(tmp_path / "net", tensors["weights"], plan, network, "0")
    with pytest.raises(FileFormatError, match="damaged|plan"):
        cnnfast.load(path)


@pytest.mark.parametrize("content", [b"", b"\x00", b"PK\x03\x04 an archive", b"\xff" * 200, b'{"a": 1}'])
def test_foreign_file_is_an_error(content, tmp_path):
    with pytest.raises(FileFormatError, match="FrozenNet.save"):
        load_bytes(content, tmp_path)


def test_nothing_is_unpickled(tmp_path):
    """A pickle under the name is refused, not run."""
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save(Trap(), tmp_path / "net")
    with pytest.raises(FileFormatError):
        cnnfast.load(tmp_path / "net")
    assert not marker.exists()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        cnnfast.load(tmp_path / "nothing")


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    frozen = cnnfast.freeze(make("lenet"), images("lenet"))
    path = frozen.save(tmp_path / "net")
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        cnnfast.freeze(make("lenet"), images("lenet")).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["net"]


_SAVE_FOREVER = """
    import sys, torch, cnnfast
    from torch import nn
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 2000))
    frozen = [cnnfast.freeze(model, torch.ones(1, 1, 20, 20)) for _ in range(2)]
    print("ready", flush=True)
    while True:
        for network in frozen:
            network.save(sys.argv[1])
"""


def test_killed_while_saving_leaves_a_whole_file(tmp_path):
    path = tmp_path / "net"
    x = torch.ones(1, 1, 20, 20)
    for delay in (0.05, 0.13):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_SAVE_FOREVER), str(path)], stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"ready\n"
        while not path.exists():
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert cnnfast.load(path)(x).shape == (1, 2000)
