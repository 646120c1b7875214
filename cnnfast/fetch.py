"""Where Fashion-MNIST may lie on this machine, and how to fetch it where it does not."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cnnfast import files
from cnnfast.files import write_atomically

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


class FetchError(RuntimeError):
    """Nothing on this machine or on the network gave the files; the message lists what was tried."""


def cache_folder() -> Path:
    """Where fetched files go: `$CNNFAST_DATA`, else the user's cache."""
    named = os.environ.get("CNNFAST_DATA")
    return Path(named).expanduser() if named else user_cache()


def user_cache() -> Path:
    """The data set's folder in the user's cache."""
    return files.user_cache() / "fashion-mnist"


def places() -> list[Path]:
    """The folders to look in, in order."""
    return list(dict.fromkeys((cache_folder(), user_cache(), DEBIAN_FOLDER)))


def fetch(names: Sequence[str]) -> Path:
    """Fetch the files `names` (without .gz); the folder they are in now.

    Debian's package is installed where that is allowed, else unpacked into the cache without root; last comes
    torchvision's download. What is tried is said on stderr.

    Raises:
        FetchError: nothing worked.
    """
    ways: list[tuple[str, Callable[[Sequence[str]], Path]]] = []
    if shutil.which("apt-get"):
        if os.geteuid() == 0:
            ways.append((f"apt-get install {DEBIAN_PACKAGE}", _install_package))
        if shutil.which("dpkg"):
            ways.append((f"apt-get download {DEBIAN_PACKAGE}", _unpack_package))
    ways.append(("torchvision's download", _torchvision_download))
    failures = []
    for description, way in ways:
        print(f"Fashion-MNIST: {description} …", file=sys.stderr, flush=True)
        try:
            return way(names)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            failures.append(f"{description}: {_last_line(error)}")
            print(f"Fashion-MNIST: that failed: {_last_line(error)}", file=sys.stderr, flush=True)
    raise FetchError("; ".join(failures))


def _install_package(names: Sequence[str]) -> Path:
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", DEBIAN_PACKAGE]
    try:
        _run(install)
    except subprocess.CalledProcessError:  # the package lists of a fresh machine are empty
        _run(["apt-get", "update", "-qq"])
        _run(install)
    return DEBIAN_FOLDER


def _unpack_package(names: Sequence[str]) -> Path:
    with tempfile.TemporaryDirectory() as work:
        try:
            _run(["apt-get", "download", DEBIAN_PACKAGE], cwd=work)
        except (
            subprocess.CalledProcessError
        ):  # no package lists, and they are root's: read them into a private place
            private = _private_apt(Path(work))
            _run(["apt-get", *private, "update", "-qq"])
            _run(["apt-get", *private, "download", DEBIAN_PACKAGE], cwd=work)
        (package,) = Path(work).glob("*.deb")
        _run(["dpkg", "-x", str(package), f"{work}/root"])
        return _keep(Path(f"{work}/root{DEBIAN_FOLDER}"), names)


def _private_apt(work: Path) -> list[str]:
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    return [
        *("-o", f"Dir::State::lists={work}/lists"),
        *("-o", f"Dir::Cache={work}/cache"),
        *("-o", "Debug::NoLocking=1"),
    ]


def _torchvision_download(names: Sequence[str]) -> Path:
    try:
        from torchvision.datasets import FashionMNIST
    except ImportError as error:
        raise RuntimeError(f"torchvision cannot be imported ({error})") from error
    with tempfile.TemporaryDirectory() as work:
        FashionMNIST(work, download=True)  # checks torchvision's MD5 sums
        return _keep(Path(work) / "FashionMNIST" / "raw", names)


def _keep(source: Path, names: Sequence[str]) -> Path:
    """Copy the .gz files into the cache, each whole or not at all."""
    target = cache_folder()
    for name in names:
        write_atomically(target / f"{name}.gz", (source / f"{name}.gz").read_bytes())
    return target


def _run(command: list[str], cwd: str | None = None) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True, timeout=600)


def _last_line(error: Exception) -> str:
    lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
