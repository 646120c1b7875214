"""Builds the operator library and the introspection module; everything else stands in pyproject.toml."""

import sys
from pathlib import Path

import setuptools
from setuptools import Extension, setup

# An older one reads pyproject.toml's licence as an error of ours. Without build isolation nobody else looks.
if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"cnnfast: needs setuptools 77, found {setuptools.__version__}: pip install -U setuptools"
    )

# pip runs this file through setuptools.build_meta, which leaves the project's folder out of sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_support.command import BuildExt  # noqa: E402

setup(
    # named for the source distribution; the ninja file of build_support decides what is compiled
    ext_modules=[Extension("cnnfast._info", sources=["csrc/binding/info.cpp"], language="c++")],
    cmdclass={"build_ext": BuildExt},
)
