"""What a thread has of the second-level cache, on systems described in a folder."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAIN = """
#include <cstdio>
#include <cstdlib>
#include "cpu/cache_size.h"
int main(int argc, char** argv) {
  std::vector<int> cpus;
  for (int i = 2; i < argc; ++i) cpus.push_back(std::atoi(argv[i]));
  std::printf("%d\\n", static_cast<int>(cnnfast::cpu::second_level_caches(cpus, argv[1])));
  for (int threads : {1, 4096, 8192})
    std::printf("%d\\n", static_cast<int>(cnnfast::cpu::second_level_cache(threads)));
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("cache_size")
    (folder / "main.cpp").write_text(MAIN)
    sources = [str(folder / "main.cpp"), str(ROOT / "csrc/cpu/cache_size.cpp")]
    flags = ["-std=c++17", "-fopenmp", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, *sources, "-o", str(folder / "cache_size")], check=True)
    return folder / "cache_size"


def run(program, system, cpus, **environment):
    command = [str(program), str(system), *map(str, cpus)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [int(line) for line in done.stdout.split()]


def described(folder, caches):
    """caches: of every CPU, the level and sharers of its caches."""
    for cpu, own in enumerate(caches):
        for index, (level, sharers) in enumerate(own):
            cache = folder / f"cpu{cpu}" / "cache" / f"index{index}"
            cache.mkdir(parents=True)
            (cache / "level").write_text(f"{level}\n")
            (cache / "shared_cpu_list").write_text(f"{sharers}\n")
    return folder


@pytest.mark.parametrize(
    ("shared", "cpus", "caches"),
    [
        (["0", "1", "2", "3"], [0, 1, 2, 3], 4),  # a core each
        (["0-1", "0-1", "2-3", "2-3"], [0, 1, 2, 3], 2),  # two threads a core
        (["0-1", "0-1", "2-3", "2-3"], [0, 2], 2),
        (["0-1", "0-1", "2-3", "2-3"], [2, 3], 1),
        (["0,2", "1,3", "0,2", "1,3"], [0, 1, 2], 2),  # neighbours by number are not on one core
    ],
)
def test_counts_caches_of_the_usable_cpus(program, tmp_path, shared, cpus, caches):
    levels = [[(1, str(cpu)), (1, str(cpu)), (2, sharers), (3, "0-3")] for cpu, sharers in enumerate(shared)]
    assert run(program, described(tmp_path, levels), cpus)[0] == caches


def test_a_cpu_that_is_not_described_has_a_cache_to_itself(program, tmp_path):
    described(tmp_path, [[(2, "0-1")], [(2, "0-1")], [(1, "2"), (3, "0-3")]])
    assert run(program, tmp_path, [0, 1, 2, 3])[0] == 3


def test_more_threads_have_less_each(program, tmp_path):
    """Of this machine, whatever it is: nobody has 4096 cores."""
    _, one, many, twice = run(program, tmp_path, [])
    assert 1 << 20 <= one <= 4 << 20 and 0 < twice < many < one


def test_bound_threads_do_not_know_the_cpus_of_others(program, tmp_path):
    _, one, many, twice = run(program, tmp_path, [], OMP_PROC_BIND="true")
    assert one == many == twice
