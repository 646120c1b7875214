"""The parent's side of a worker: start, ask, stop, continue, end. Nothing here can hang."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any


class WorkerError(RuntimeError):
    """A request that a worker answered with an error, or did not answer."""


class Worker:
    """A Python process of its own session that answers JSON requests (see worker.py).

    Threads of the numeric libraries are set before it starts, since most read them only once.
    """

    def __init__(self, name: str, threads: int, module: str = "cnnfast.benchmarking.worker"):
        self.name = name
        self._printed = tempfile.TemporaryFile()
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(requests), str(replies)],
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=self._printed,
                pass_fds=(requests, replies),
                env=_environment(threads),
                start_new_session=True,  # one group to stop and end, its own children included
            )
        finally:
            os.close(requests)
            os.close(replies)
        self._pending = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Sends a request and gives the answer's value. Error answer, death, silence: WorkerError."""
        line = json.dumps({"request": request, **arguments}) + "\n"
        try:
            os.write(self._requests, line.encode())
        except BrokenPipeError:
            raise WorkerError(self._obituary(request)) from None
        reply = json.loads(self._read_line(request, timeout))
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply["value"]

    def _read_line(self, request: str, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._pending:
            remaining = max(0.0, deadline - time.monotonic())
            if not select.select([self._replies], [], [], remaining)[0]:
                self._kill()
                raise WorkerError(f"{request}: no answer in {timeout:g} s; ended{self._tail()}")
            chunk = os.read(self._replies, 65536)
            if not chunk:
                raise WorkerError(self._obituary(request))
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def pause(self) -> None:
        """Stops the process group, spinning thread pools included, and waits until it stands."""
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends the process, stopped or not, and frees its pipes."""
        self._kill()
        os.close(self._requests)
        os.close(self._replies)
        self._printed.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                pass

    def _obituary(self, request: str) -> str:
        self._kill()
        code = self._process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"{request}: the process died ({how}){self._tail()}"

    def _tail(self, characters: int = 1500) -> str:
        """The end of what the process printed."""
        self._printed.seek(0, os.SEEK_END)
        self._printed.seek(max(0, self._printed.tell() - characters))
        text = self._printed.read().decode(errors="replace").strip()
        return f"; its output ends:\n{text}" if text else ""


def _environment(threads: int) -> dict[str, str]:
    count = str(threads)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
