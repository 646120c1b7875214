"""`make wheel`: source distribution, wheel, its platform tag, a test where there is no compiler.

    python -m build_support.wheel FOLDER

FOLDER gets the source distribution, and in torch<version>/ the wheel: a library belongs to one torch. The
wheel is built from the unpacked source distribution, so a file missing there is found here. Torch's own
libraries stay outside of it; auditwheel gives it the manylinux tag that its symbols allow. Then the wheel is
installed into a fresh environment whose PATH has nothing but its own python, and used there.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

from .environment import find_torch, stop

ROOT = Path(__file__).resolve().parent.parent
SMOKE = Path(__file__).with_name("wheel_smoke.py")
# What torch brings, or what is loaded by it: the wheel must not carry a second copy.
EXCLUDED = ("libtorch*.so*", "libc10*.so*", "libgomp*.so*", "libcudart*.so*")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m build_support.wheel", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist")
    folder = parser.parse_args(arguments).folder.resolve()
    sdist = build_sdist(folder)
    target = folder / f"torch{find_torch().version}"
    with tempfile.TemporaryDirectory(prefix="cnnfast-wheel-") as scratch:
        raw = build_wheel(sdist, Path(scratch))
        wheel = tagged(raw, target)
        try_in_clean_environment(wheel, Path(scratch) / "environment")
    print(f"{sdist}\n{wheel}: {wheel.stat().st_size / 2**20:.1f} MiB")
    return 0


def build_sdist(folder: Path) -> Path:
    """The source distribution, through the same hook that pip calls."""
    folder.mkdir(parents=True, exist_ok=True)
    code = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    output = run([sys.executable, "-c", code, str(folder)], cwd=ROOT)
    return folder / output.splitlines()[-1]


def build_wheel(sdist: Path, scratch: Path) -> Path:
    """The wheel of an unpacked source distribution."""
    with tarfile.open(sdist) as archive:
        archive.extractall(scratch, filter="data")
    (source,) = [path for path in scratch.iterdir() if path.is_dir()]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    raw = scratch / "raw"
    run([*pip, "--no-build-isolation", "--no-deps", "--wheel-dir", str(raw), "."], cwd=source)
    (wheel,) = raw.glob("*.whl")
    return wheel


def tagged(wheel: Path, target: Path) -> Path:
    """The same wheel under its manylinux tag; ends the build where its libraries allow none."""
    auditwheel = [sys.executable, "-m", "auditwheel"]
    exclude = [word for pattern in EXCLUDED for word in ("--exclude", pattern)]
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("cnnfast-*.whl"):
        old.unlink()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    print(run([*auditwheel, "show", str(wheel)], env=environment).strip())
    run([*auditwheel, "repair", *exclude, "--wheel-dir", str(target), str(wheel)], env=environment)
    (result,) = target.glob("cnnfast-*.whl")
    if "manylinux" not in result.name:
        stop(f"{result.name} has no manylinux tag")
    return result


def try_in_clean_environment(wheel: Path, folder: Path) -> None:
    """Install and use the wheel where no compiler is on PATH.

    The environment is a new one; the packages that the wheel asks for are links to those of this one, for
    torch alone takes gigabytes.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    own = ("cnnfast", "__editable__", "pip", "setuptools", "_distutils_hack", "distutils-precedence")
    for source in {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}:
        for entry in source.iterdir():
            if not entry.name.startswith(own) and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CXX", "CC", "PYTHONPATH") and not name.startswith("CNNFAST_")
    }
    clean["PATH"] = str(folder / "bin")
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run([*install, "--no-index", "--no-deps", str(wheel)], env=clean, cwd=folder)
    print(run([str(python), "-W", "error::RuntimeWarning", str(SMOKE)], env=clean, cwd=folder).strip())


def run(command: list[str], **options) -> str:
    """Standard output of a command; ends the build with its words where it fails."""
    result = subprocess.run(command, capture_output=True, text=True, **options)
    if result.returncode != 0:
        output = f"{result.stdout}{result.stderr}".strip()
        stop(f"`{shutil.which(command[0]) or command[0]} {' '.join(command[1:])}` failed:\n{output}")
    return result.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
