"""Batches that are made while the network computes."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator

from torch import Tensor

Batch = tuple[Tensor, Tensor]


class Prefetched:
    """The same batches in the same order, made by a thread of their own, `ahead` of them in advance.

    A thread, not a process: torch releases the interpreter while it works, and nothing has to be copied.
    `waited` counts the seconds that the consumer stood still. What making a batch raises, iterating raises.
    """

    def __init__(self, batches: Iterable[Batch], ahead: int = 2):
        self._batches = batches
        self._ahead = ahead
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        ready: queue.Queue = queue.Queue(self._ahead)
        stop = threading.Event()
        maker = threading.Thread(target=_make, args=(self._batches, ready, stop), daemon=True)
        maker.start()
        try:
            while True:
                start = time.perf_counter()
                batch, error = ready.get()
                self.waited += time.perf_counter() - start
                if error is not None:
                    raise error
                if batch is None:
                    return
                yield batch
        finally:  # also where the consumer leaves in the middle
            stop.set()
            maker.join()


def _make(batches: Iterable[Batch], ready: queue.Queue, stop: threading.Event) -> None:
    try:
        for batch in batches:
            if not _offer((batch, None), ready, stop):
                return
    except BaseException as error:  # the consumer raises it: nobody would see it here
        _offer((None, error), ready, stop)
    else:
        _offer((None, None), ready, stop)


def _offer(item: tuple, ready: queue.Queue, stop: threading.Event) -> bool:
    """Wait for a place in the queue; False where nobody takes batches any more."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.05)
            return True
        except queue.Full:
            continue
    return False
