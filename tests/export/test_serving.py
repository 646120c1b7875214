"""One loaded network, many threads: the same answers, no lock across a run, no memory that grows."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from fuse.networks import images, make

import cnnfast
from cnnfast import _ext

pytestmark = [
    pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same frozen network as TorchScript and by FrozenNet.save."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("serving")
    frozen = cnnfast.freeze(make("resnet"), images("resnet"))
    cnnfast.export(frozen, folder / "net.pt", verify=False)
    frozen.save(folder / "net.cnnfast")
    return folder


def in_threads(count, work):
    failures = []

    def guarded(i):
        try:
            work(i)
        except BaseException as error:  # a thread's exception would be lost
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("load", [torch.jit.load, cnnfast.load], ids=["torchscript", "save"])
def test_serving_threads_share_one_network(load, files):
    """The first calls of all threads at once, too: they plan and pack."""
    network = load(files / ("net.pt" if load is torch.jit.load else "net.cnnfast"))
    alone = cnnfast.load(files / "net.cnnfast")
    batches = [torch.randn(1 + i % 5, 3, 17 + i % 3, 20) for i in range(8)]
    wanted = [alone(x) for x in batches]
    begin = threading.Barrier(8)

    def work(i):
        begin.wait()
        for turn in range(20):
            at = (i + turn) % 8
            assert torch.equal(network(batches[at]), wanted[at])

    in_threads(8, work)


def test_serving_holds_no_lock_across_a_run(files):
    """While one thread is inside a long call, another one's calls of the same network begin and end."""
    network = cnnfast.load(files / "net.cnnfast")
    small, large = torch.randn(1, 3, 17, 20), torch.randn(600, 3, 68, 80)
    network(small), network(large)
    inside = threading.Event()
    span, ends = [], []

    def long_call():
        inside.set()
        began = time.perf_counter()
        network(large)
        span.extend((began, time.perf_counter()))

    def short_calls():
        inside.wait()
        while not span:
            network(small)
            ends.append(time.perf_counter())

    in_threads(2, lambda i: (long_call, short_calls)[i]())
    began, ended = span
    # with a lock there would be one at most, from before or behind the long call
    assert sum(began < end < ended for end in ends) >= 5, (ended - began, len(ends))


_MANY_CALLS = """
    import json, random, sys
    import torch
    import cnnfast

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    torch.set_num_threads(1)
    network = torch.jit.load(sys.argv[1]) if sys.argv[1].endswith(".pt") else cnnfast.load(sys.argv[1])
    choice, sizes = random.Random(0), []
    with torch.inference_mode():
        for call in range(10_000):
            network(torch.zeros(choice.randrange(1, 33), 3, 17, 20))
            if call % 1000 == 999:
                sizes.append(resident())
    print(json.dumps(sizes))
"""


@pytest.mark.parametrize("name", ["net.pt", "net.cnnfast"])
def test_serving_memory_does_not_grow(name, files):
    """10,000 calls with 32 batch sizes, twice as many as there are plans kept."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(_MANY_CALLS), str(files / name)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    sizes = json.loads(result.stdout)
    assert max(sizes[5:]) - max(sizes[:5]) < 4 << 20, [size >> 10 for size in sizes]
