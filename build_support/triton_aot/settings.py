"""The build option CNNFAST_TRITON_AOT and the version of Triton that the generated launcher is made for."""

import importlib.metadata
import os

from ..environment import stop

# The launcher passes what this version's own launcher passes: a kernel's parameters in the order of its
# signature without constants, then the addresses of the global and of the profiling scratch buffer. Other
# versions have passed other things, and nothing but a wrong result would tell.
TRITON_VERSION = "3.8.0"
ARCHS = (80, 86, 89, 90, 100, 120)
# The architecture whose PTX is kept for chips that are newer than all of ARCHS. Code for 90 and later is
# specific to one architecture (sm_90a), this is not.
PTX_ARCH = 80
MOST_VARIANTS = 224


def wanted_archs() -> tuple[int, ...]:
    """Architectures to compile for by $CNNFAST_TRITON_AOT; none where it is unset or 0."""
    value = os.environ.get("CNNFAST_TRITON_AOT", "")
    if value in ("", "0"):
        return ()
    if value == "1":
        return ARCHS
    words = value.split(",")
    if not all(word.isdigit() and int(word) in ARCHS for word in words):
        known = ",".join(map(str, ARCHS))
        stop(f"CNNFAST_TRITON_AOT={value}: say 0, 1 or a list of architectures out of {known}")
    return tuple(sorted({int(word) for word in words}))


def check_triton() -> None:
    """Ends the build unless the pinned version is installed."""
    try:
        found = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != TRITON_VERSION:
        stop(
            f"CNNFAST_TRITON_AOT needs triton {TRITON_VERSION}, found {found}: the launcher of compiled "
            f"kernels depends on it (pip install triton=={TRITON_VERSION}, or leave CNNFAST_TRITON_AOT unset)"
        )
