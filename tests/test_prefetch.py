"""Batches made in advance: the same ones, errors passed on, no thread left behind."""

import threading
import time

import pytest

from cnnfast.training.prefetch import Prefetched


def makers():
    return [thread for thread in threading.enumerate() if "_make" in thread.name]


def test_order_is_kept_and_the_thread_ends():
    assert list(Prefetched(range(20))) == list(range(20))
    assert list(Prefetched([])) == []
    assert not makers()


def test_it_works_in_advance_but_no_further():
    made = []

    def counting():
        for number in range(10):
            made.append(number)
            yield number

    batches = iter(Prefetched(counting(), ahead=2))
    assert next(batches) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert made == [0, 1, 2, 3]  # one taken, two ready, one in hand
    batches.close()
    assert not makers()


def test_an_error_in_the_making_is_raised_after_what_was_made():
    def broken():
        yield 1
        raise ZeroDivisionError("in the maker")

    taken = []
    with pytest.raises(ZeroDivisionError, match="in the maker"):
        for batch in Prefetched(broken()):
            taken.append(batch)
    assert taken == [1] and not makers()


def test_leaving_in_the_middle_ends_the_thread():
    def endless():
        while True:
            yield 0

    with pytest.raises(KeyboardInterrupt):
        for _ in Prefetched(endless()):
            raise KeyboardInterrupt
    assert not makers()


def test_waiting_is_counted():
    def slow():
        for number in range(3):
            time.sleep(0.05)
            yield number

    batches = Prefetched(slow())
    assert list(batches) == [0, 1, 2] and batches.waited > 0.1
    batches = Prefetched(range(3))
    for _ in batches:
        time.sleep(0.05)
    assert batches.waited < 0.1
