"""The emulation that runs kernels on the host: right kernels come out right, broken ones are found out."""

import subprocess

import pytest
from host_program import environment


@pytest.fixture(scope="module")
def emulate(host_programs):
    program = host_programs("emulation_main")

    def run(name):
        return subprocess.run([program, name], capture_output=True, text=True, env=environment())

    return run


def test_barriers_order_every_schedule(emulate):
    assert emulate("barriers").stdout == "50\n"


@pytest.mark.parametrize("which", ("first", "second"))
def test_a_missing_barrier_shows(emulate, which):
    """In every single schedule: with 64 threads there is always a neighbour that comes too late."""
    result = emulate(f"{which}_barrier_missing")
    assert result.returncode == 0 and int(result.stdout) <= 2, result


@pytest.mark.parametrize("name", ("xor", "down", "ballot"))
def test_warps_exchange(emulate, name):
    assert emulate(name).stdout == "right\n"


def test_atomics(emulate):
    assert emulate("atomics").stdout == "64\n"


def test_traffic_counts_bytes_and_accesses(emulate):
    assert emulate("traffic").stdout == "256 256 64 64\n"


@pytest.mark.parametrize(
    ("name", "message"),
    (
        ("divergent_barrier", "others wait at a barrier|after other threads have ended"),
        ("different_barriers", "different barriers"),
        ("lane_missing", "waits for lanes 00000020"),
        ("mask_without_itself", "leaves out its own lane"),
        ("odd_vector", "odd address"),
        ("global_overflow", "heap-buffer-overflow"),
        ("shared_overflow", "heap-buffer-overflow"),
        ("stack_overflow_on_a_fibre", "stack-buffer-overflow"),
    ),
)
def test_broken_kernels_are_found_out(emulate, name, message):
    result = emulate(name)
    assert result.returncode != 0
    assert any(part in result.stderr for part in message.split("|")), result.stderr
