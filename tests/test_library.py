"""The operator library as a file: what it links, what its objects share, and its threads."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cnnfast import _ext

pytestmark = pytest.mark.skipif(not _ext.AVAILABLE, reason=f"the extension is not there: {_ext.REASON}")

LIBRARY = Path(_ext.__file__).parent / "lib" / "libcnnfast.so"


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def needed(library: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", str(library)))


@pytest.mark.skipif(not shutil.which("readelf"), reason="readelf is not installed")
def test_library_needs_neither_python_nor_an_openmp_of_its_own():
    names = needed(LIBRARY)
    assert any("torch_cpu" in name for name in names)
    assert not [name for name in names if "python" in name]
    if any("gomp" in name for name in needed(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")):
        assert not [name for name in names if "gomp" in name]


def test_library_loads_without_the_package():
    code = (
        "import sys, torch; torch.ops.load_library(sys.argv[1]);"
        "print(torch.ops.cnnfast.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2)).flatten().tolist());"
        "assert 'cnnfast' not in sys.modules"
    )
    assert run(sys.executable, "-c", code, str(LIBRARY)) == "[4.0, 4.0, 4.0, 4.0]\n"


def test_parallel_regions_have_torch_number_of_threads():
    from cnnfast import _info

    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert _info.openmp_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_one_openmp_runtime_is_mapped():
    code = (
        "import torch, cnnfast;"
        "torch.ops.cnnfast.conv2d(torch.randn(8, 64, 32, 32), torch.randn(64, 64, 3, 3));"
        "torch.randn(512, 512) @ torch.randn(512, 512);"
        "print(open('/proc/self/maps').read())"
    )
    mapped = set(re.findall(r"\S*/(?:libgomp|libiomp5|libomp)\S*", run(sys.executable, "-c", code)))
    assert len(mapped) == 1, mapped


def isa_objects() -> list[Path]:
    """Objects of single instruction sets; none where the package was installed from a wheel."""
    builds = Path(_ext.__file__).parent.parent / "build"
    return sorted(builds.glob("cp*/objects/csrc/cpu/isa*/*.o"))


@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
@pytest.mark.skipif(not isa_objects(), reason="no build folder beside the package")
def test_objects_of_an_instruction_set_share_no_code():
    """A weak function in an AVX object could be the copy that the linker keeps for every CPU."""
    for path in isa_objects():
        for line in run("nm", "-C", str(path)).splitlines():
            kind, name = line[17:18], line[19:]
            assert kind not in "WVu", f"{path.name} shares {name}"
            if kind in "TDR":
                assert name.endswith("Kernels"), f"{path.name} exports {name}"


def test_forced_instruction_set_must_be_known():
    code = "import cnnfast"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"CNNFAST_CPU_ISA": "avx1024", "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "CNNFAST_CPU_ISA=avx1024" in result.stderr and "portable" in result.stderr


def missing_isas() -> list[str]:
    from cnnfast import _info

    return [isa for isa in _ext.build_info().get("isas", []) if isa not in _info.available_isas()]


@pytest.mark.skipif(not _ext.AVAILABLE or not missing_isas(), reason="this CPU runs all that was compiled")
def test_forced_instruction_set_must_run_here():
    from cnnfast import _info

    for isa in missing_isas():
        result = subprocess.run(
            [sys.executable, "-c", "import cnnfast"],
            env={"CNNFAST_CPU_ISA": isa, "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
        )
        assert result.returncode != 0
        assert f"CNNFAST_CPU_ISA={isa} is not supported by this CPU" in result.stderr
        assert isa != "amx" or _info.amx_state() in result.stderr


def test_checksum_sees_every_byte():
    data = torch.arange(100, dtype=torch.uint8)
    base = torch.ops.cnnfast.checksum(data)
    for place in range(100):
        changed = data.clone()
        changed[place] ^= 1
        assert torch.ops.cnnfast.checksum(changed) != base
    assert torch.ops.cnnfast.checksum(data[:99].clone()) != base
    assert torch.ops.cnnfast.checksum(torch.zeros(8)) != torch.ops.cnnfast.checksum(torch.zeros(9))
