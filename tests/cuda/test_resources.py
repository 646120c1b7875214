"""Registers, spills, shared memory, occupancy and 16-byte accesses of every CUDA kernel, per architecture."""

import pytest

from build_support.cuda import find_nvcc
from build_support.cuda_resources import (
    ARCHS,
    differences,
    measure,
    occupancy,
    read_table,
    sources,
    spills,
)

needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc in CUDA_HOME, PATH or /usr/local/cuda")
SOURCES = {path.stem: path for path in sources()}


@needs_nvcc
@pytest.mark.gpu_proof
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES)
def test_kernels_take_what_the_table_says(source, arch):
    measured = measure(SOURCES[source], arch, find_nvcc())
    assert measured
    assert not spills(arch, measured)
    assert not differences(SOURCES[source], arch, measured, find_nvcc())


def test_the_table_has_every_source_and_architecture():
    kernels = read_table()["kernels"]
    assert set(kernels) == set(ARCHS)
    assert all(set(by_source) == set(SOURCES) for by_source in kernels.values())


def test_the_table_knows_no_spills_and_16_byte_accesses():
    """The variants for aligned memory move whole vectors; what the table allows is what a kernel may take."""
    for arch, by_source in read_table()["kernels"].items():
        for kernels in by_source.values():
            for name, row in kernels.items():
                assert row["spilled_bytes"] == 0, (arch, name)
                if ", true" in name:
                    assert row["vector_loads"] >= 1, (arch, name)
                    # a winner is one byte, and a thread has those of 16 bytes of values
                    assert row["vector_stores"] >= 1 or name.startswith("max_pool_winners"), (arch, name)


def test_occupancy_by_registers_and_by_shared_memory():
    assert occupancy("sm_80", 64, 0) == 0.5
    assert occupancy("sm_80", 65, 0) == 0.375, "registers are allocated by 256 per warp"
    assert occupancy("sm_90", 32, 0) == 1.0
    assert occupancy("sm_86", 32, 49 * 1024) == 0.333, "two blocks of 50 KiB in 100"
