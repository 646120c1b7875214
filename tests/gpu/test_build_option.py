"""CNNFAST_TRITON_AOT: what it accepts, what it refuses, what it adds to the build."""

import dataclasses
import importlib.metadata
import io

import pytest
from aot_library import ROOT

from build_support.environment import Compiler, Torch
from build_support.flags import precompiles
from build_support.ninja_file import NinjaFile, Plan
from build_support.triton_aot import settings


@pytest.mark.parametrize(
    "value, archs", (("", ()), ("0", ()), ("1", settings.ARCHS), ("90,80", (80, 90)), ("120", (120,)))
)
def test_values(monkeypatch, value, archs):
    monkeypatch.setenv("CNNFAST_TRITON_AOT", value)
    assert settings.wanted_archs() == archs


@pytest.mark.parametrize("value", ("75", "sm_80", "80;90", "yes", "80,"))
def test_refused_values_say_what_there_is(monkeypatch, value):
    monkeypatch.setenv("CNNFAST_TRITON_AOT", value)
    with pytest.raises(SystemExit, match="a list of architectures out of 80,86,89,90,100,120"):
        settings.wanted_archs()


def test_other_versions_of_triton_are_refused(monkeypatch):
    def absent(_):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", lambda _: settings.TRITON_VERSION)
    settings.check_triton()
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "3.9.0")
    with pytest.raises(SystemExit, match=r"needs triton 3\.8\.0, found 3\.9\.0.*pip install triton==3\.8\.0"):
        settings.check_triton()
    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(SystemExit, match="found none"):
        settings.check_triton()


def ninja_text(archs: tuple[int, ...], part=NinjaFile.triton_table) -> str:
    from ninja.ninja_syntax import Writer

    torch = Torch("2.14.0", None, ROOT, 1)
    plan = Plan(ROOT, torch, _Compiler(("g++",), "g++"), None, [], archs)
    part(NinjaFile(dataclasses.replace(plan), Writer(stream := io.StringIO(), width=10000)))
    return stream.getvalue()


class _Compiler(Compiler):
    def accepts(self, flags, source=""):
        return True


def test_kernels_are_a_step_of_the_build():
    assert ninja_text(()) == ""
    text = ninja_text((80, 90))
    assert "-m build_support.triton_aot" in text and "--archs 80,90" in text
    assert "triton_table.inc" in text and "triton_kernels.bin" in text
    assert "cnnfast/triton/conv2d.py" in text  # a kernel that changes is compiled again
    assert "-triton80-90/" in text  # beside builds without


def test_headers_are_compiled_once_where_the_compiler_can(monkeypatch):
    monkeypatch.delenv("CNNFAST_PRECOMPILED", raising=False)
    precompiles.cache_clear()
    assert ".gch: precompile " in ninja_text((), NinjaFile.precompiled_headers)
    for value, match in (("0", None), ("yes", "CNNFAST_PRECOMPILED=yes: say 0")):
        precompiles.cache_clear()
        monkeypatch.setenv("CNNFAST_PRECOMPILED", value)
        if match is None:
            assert ninja_text((), NinjaFile.precompiled_headers) == ""
        else:
            with pytest.raises(SystemExit, match=match):
                ninja_text((), NinjaFile.precompiled_headers)
    precompiles.cache_clear()
