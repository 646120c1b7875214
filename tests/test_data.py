"""Fashion-MNIST: the real files, damaged files, places and ways to fetch."""

import gzip
import struct
import subprocess
import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnnfast import data, fetch
from cnnfast.data import DataError, fashion_mnist, parse_idx, write_idx
from cnnfast.files import replacing, write_atomically

LABELS = data.FILES["test"][1]


@pytest.fixture(scope="module")
def label_file():
    """The plain bytes of the test labels."""
    labels = fashion_mnist("test")[1]
    return struct.pack(">HBBI", 0, 8, 1, len(labels)) + bytes(labels.tolist())


@pytest.fixture
def folder(tmp_path, label_file):
    """All four names; only the test labels have content."""
    for name in data.NAMES:
        (tmp_path / name).touch()
    (tmp_path / LABELS.name).write_bytes(label_file)
    return tmp_path


@pytest.mark.parametrize("split, count", [("train", 60_000), ("test", 10_000)])
def test_real_data_has_every_image(split, count):
    images, labels = fashion_mnist(split)
    assert images.shape == (count, 28, 28) and images.dtype == torch.uint8
    assert labels.shape == (count,) and labels.dtype == torch.int64
    assert labels.bincount().tolist() == [count // 10] * 10  # so the data set's authors say
    assert images.amax() == 255 and images.amin() == 0


def test_real_data_mean_is_the_published_one():
    images = fashion_mnist("train")[0].double() / 255
    assert images.mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert images.std().item() == pytest.approx(0.3530, abs=1e-4)


def test_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="'validation'"):
        fashion_mnist("validation")


def test_intact_file_is_read(folder):
    assert torch.equal(data.read_checked(folder / LABELS.name, LABELS).long(), fashion_mnist("test")[1])


def _flip(content, position):
    changed = bytearray(content)
    changed[position] ^= 1
    return bytes(changed)


DAMAGE = {
    "empty": lambda content: b"",
    "truncated in its header": lambda content: content[:6],
    "truncated": lambda content: content[:-1],
    "too long": lambda content: content + b"\0",
    "wrong magic": lambda content: b"\x12" + content[1:],
    "wrong type": lambda content: content[:2] + b"\x0d" + content[3:],
    "wrong rank": lambda content: content[:3] + b"\x03" + content[4:],
    "wrong count": lambda content: content[:7] + b"\x11" + content[8:],
    "other shape": lambda content: b"\0\0\x08\x02" + struct.pack(">II", 100, 100) + content[8:],
    "flipped first label": lambda content: _flip(content, 8),
    "flipped last label": lambda content: _flip(content, len(content) - 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_file_is_an_error_that_names_it(folder, label_file, damage):
    path = folder / LABELS.name
    path.write_bytes(damage(label_file))
    with pytest.raises(DataError, match="python -m cnnfast data") as caught:
        data.read_checked(path, LABELS)
    assert str(path) in str(caught.value)


GZIP_DAMAGE = {
    "not gzip": lambda content: b"<html>" + content,
    "truncated": lambda content: content[: len(content) // 2],
    "flipped bit": lambda content: _flip(content, len(content) // 2),
    "without its end": lambda content: content[:-4],
}


@pytest.mark.parametrize("damage", GZIP_DAMAGE.values(), ids=GZIP_DAMAGE)
def test_damaged_gz_is_an_error_that_names_it(folder, label_file, damage):
    path = folder / f"{LABELS.name}.gz"
    path.write_bytes(gzip.compress(label_file))
    assert len(data.read_checked(path, LABELS)) == 10_000
    path.write_bytes(damage(gzip.compress(label_file)))
    with pytest.raises(DataError, match="damaged") as caught:
        data.read_checked(path, LABELS)
    assert str(path) in str(caught.value)


def test_damaged_split_stops_fashion_mnist(folder):
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte is damaged"):
        fashion_mnist("test", root=folder)


def test_missing_file_is_named(folder):
    (folder / LABELS.name).unlink()
    with pytest.raises(DataError, match=f"lacks {LABELS.name}"):
        data.find(folder)


def test_empty_root_is_an_error_even_where_the_data_is_elsewhere(tmp_path):
    with pytest.raises(DataError, match=f"not in {tmp_path}: "):
        fashion_mnist("test", root=tmp_path)


@given(st.binary(max_size=40))
def test_parse_idx_of_any_bytes_is_an_array_or_an_error(content):
    try:
        array = parse_idx(content)
    except ValueError:
        return
    assert array.numel() == len(content) - 4 - 4 * array.dim()


@pytest.mark.parametrize("shape", [(7,), (2, 3), (3, 4, 5), (0,), (2, 0, 3)])
def test_idx_round_trip(tmp_path, shape):
    array = torch.randint(0, 256, shape)
    path = write_idx(array, tmp_path / "array")
    assert torch.equal(parse_idx(path.read_bytes()).long(), array)


def test_write_idx_refuses_values_that_are_no_bytes(tmp_path):
    with pytest.raises(ValueError, match="256"):
        write_idx(torch.tensor([0, 256]), tmp_path / "array")
    assert not list(tmp_path.iterdir())


def test_first_place_that_has_the_files_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNFAST_DATA", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "DEBIAN_FOLDER", tmp_path / "debian")
    in_order = [tmp_path / "named", tmp_path / "cache/cnnfast/fashion-mnist", tmp_path / "debian"]
    assert fetch.places() == in_order
    for place in reversed(in_order):
        place.mkdir(parents=True)
        for name in data.NAMES:
            (place / f"{name}.gz").touch()
        assert data.find(download=False) == place


def test_torchvision_layout_is_found(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in data.NAMES:
        (raw / name).touch()
    assert data.find(tmp_path) == raw


@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
    """A machine without the files, on which every command fails; the commands that were tried."""
    tried = []

    def run(command, cwd=None):
        tried.append(command)
        raise subprocess.CalledProcessError(100, command, stderr="E: no network\n")

    monkeypatch.setenv("CNNFAST_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(fetch, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(fetch, "_run", run)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(fetch.os, "geteuid", lambda: 0)
    torchvision = types.ModuleType("torchvision.datasets")

    def download(root, download):
        raise RuntimeError("torchvision: no network")

    torchvision.FashionMNIST = download
    monkeypatch.setitem(sys.modules, "torchvision.datasets", torchvision)
    return tried


def test_every_way_is_tried_and_named(nothing_here):
    with pytest.raises(DataError) as caught:
        fashion_mnist("test")
    ways = ("apt-get install", "apt-get download", "torchvision")
    assert all(way in str(caught.value) for way in ways)
    assert "CNNFAST_DATA" in str(caught.value) and "E: no network" in str(caught.value)
    assert nothing_here[1][:2] == ["apt-get", "update"]  # fresh machines have no package lists


def test_nothing_is_fetched_without_download(nothing_here):
    with pytest.raises(DataError, match="python -m cnnfast data"):
        data.find(download=False)
    assert not nothing_here


def test_package_is_unpacked_without_root(nothing_here, tmp_path, monkeypatch):
    def run(command, cwd=None):
        assert "install" not in command
        if "download" in command:
            (fetch.Path(cwd) / "dataset.deb").touch()
        if command[0] == "dpkg":
            inside = fetch.Path(f"{command[-1]}{fetch.DEBIAN_FOLDER}")
            inside.mkdir(parents=True)
            for name in data.NAMES:
                (inside / f"{name}.gz").write_bytes(name.encode())

    monkeypatch.setattr(fetch, "_run", run)
    monkeypatch.setattr(fetch.os, "geteuid", lambda: 1000)
    assert data.find() == tmp_path / "cache"
    found = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert found == sorted(f"{name}.gz" for name in data.NAMES)


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = write_atomically(tmp_path / "file.txt", "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
