"""The parent's side of a worker: answers, death, silence, stopping."""

import signal
import subprocess
import sys
import time

import pytest

from cnnfast.benchmarking.process import Worker, WorkerError


@pytest.fixture
def worker():
    with Worker("fake", threads=3, module="fake_worker") as worker:
        yield worker


def state(pid):
    from fake_contenders import state

    return state(pid)


def test_worker_answers_in_spite_of_noise_on_standard_output(worker):
    assert worker.ask("echo", 30, number=7) == {"number": 7}
    assert worker.ask("echo", 30, text="ä\n") == {"text": "ä\n"}


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_worker_starts_with_the_number_of_threads(worker, name):
    assert worker.ask("environment", 30, name=name) == "3"


def test_worker_error_is_passed_on_and_the_worker_lives(worker):
    with pytest.raises(WorkerError, match="ValueError: as asked"):
        worker.ask("raise", 30)
    assert worker.ask("echo", 30) == {}


def test_dead_worker_is_reported_with_its_last_words(worker):
    with pytest.raises(WorkerError, match=r"(?s)die: the process died \(exit status 3\).*last words"):
        worker.ask("die", 30)
    with pytest.raises(WorkerError, match="exit status 3"):
        worker.ask("echo", 30)


def test_worker_killed_by_a_signal_is_reported_by_name(worker):
    with pytest.raises(WorkerError, match="SIGSEGV"):
        worker.ask("signal", 30, number=signal.SIGSEGV)


def test_silent_worker_is_ended_at_its_time_limit(worker):
    start = time.monotonic()
    with pytest.raises(WorkerError, match="hang: no answer in 0.5 s"):
        worker.ask("hang", 0.5)
    assert time.monotonic() - start < 30
    assert state(worker.pid) is None


def test_pause_stops_worker_and_children_and_resume_continues(worker):
    child = worker.ask("child", 30)
    for _ in range(2):
        worker.pause()
        assert state(worker.pid) == "T"
        _wait_for(lambda: state(child) == "T")
        worker.resume()
        assert worker.ask("echo", 30, again=True) == {"again": True}
        assert state(child) != "T"


def test_close_ends_a_stopped_worker_and_its_children():
    worker = Worker("fake", threads=1, module="fake_worker")
    child = worker.ask("child", 30)
    worker.pause()
    worker.close()
    assert state(worker.pid) is None
    _wait_for(lambda: state(child) in (None, "Z"))


def test_stopped_worker_dies_with_its_parent():
    program = """
import os, signal
from cnnfast.benchmarking.process import Worker, WorkerError
worker = Worker("orphan", 1)
try:
    worker.ask("no such request", 120)
except WorkerError as error:
    assert "no such request" in str(error), error
worker.pause()
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout.split()[-1])
    _wait_for(lambda: state(pid) in (None, "Z"))


def _wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
