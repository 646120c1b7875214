"""Loads the compiled operator library, or says in words why it is not used.

`AVAILABLE` tells whether `torch.ops.cnnfast` exists; `REASON` is empty or the reason why it does not.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).resolve().parent
_LIBRARY = _PACKAGE / "lib" / "libcnnfast.so"
_BUILD_INFO = _PACKAGE / "_build_info.json"
_REBUILD = "pip install --no-build-isolation -e ."


def _read_build_info() -> dict[str, Any] | None:
    """What setup.py wrote beside the library; None where nothing was built."""
    if not _BUILD_INFO.is_file():
        return None
    return json.loads(_BUILD_INFO.read_text())


def _reason_not_to_load(info: dict[str, Any] | None) -> str:
    if os.environ.get("CNNFAST_REFERENCE", "0") not in ("", "0"):
        return "CNNFAST_REFERENCE is set: unset it to use the compiled operators"
    if info is None or not _LIBRARY.is_file():
        return f"the compiled operators are not built: run `{_REBUILD}` in the source folder"
    if info["torch"] != torch.__version__:
        return (
            f"cnnfast was built for torch {info['torch']}, the imported torch is {torch.__version__}: "
            f"rebuild with `{_REBUILD}`"
        )
    return ""


def _load() -> str:
    """Load the library; returns the reason where it cannot be used.

    An instruction set forced by CNNFAST_CPU_ISA that is unknown or unsupported is an error, never a fallback.
    """
    reason = _reason_not_to_load(_read_build_info())
    if reason:
        return reason
    try:
        torch.ops.load_library(str(_LIBRARY))
    except OSError as error:
        if os.environ.get("CNNFAST_CPU_ISA"):
            raise
        return f"{_LIBRARY.name} does not load ({error}): rebuild with `{_REBUILD}`"
    if os.environ.get("CNNFAST_CPU_ISA"):
        active_isa()  # raises now, not in the middle of a network
    return ""


def build_info() -> dict[str, Any]:
    """What was built: torch version, CUDA architectures, compiler, instruction sets. Empty if nothing was."""
    return _read_build_info() or {}


def active_isa() -> str:
    """The instruction set whose CPU kernels run: portable, avx2, avx512, …"""
    from cnnfast import _info

    return _info.active_isa()


REASON: str = _load()
AVAILABLE: bool = not REASON
if REASON:
    warnings.warn(
        f"cnnfast runs its slow reference operators (plain PyTorch): {REASON}", RuntimeWarning, stacklevel=2
    )
