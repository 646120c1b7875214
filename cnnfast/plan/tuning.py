"""Measured times of convolutions: the library's table, and its file in the user's cache.

A file holds for one version of cnnfast, one model of CPU and one instruction set. It is replaced as a
whole: of several processes that write at once the last one wins.
"""

import contextlib
import json
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor

from cnnfast import _ext
from cnnfast.files import user_cache, write_atomically

COLUMNS = (
    "threads", "images", "in_channels", "out_channels", "groups", "kernel_h", "kernel_w", "out_height",
    "out_width", "points", "tile", "nanoseconds",
)  # fmt: skip
# Path.home() and torch raise RuntimeError.
_UNUSABLE = (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError)


def tune(weights: Tensor, plan: Tensor, inputs: list[Tensor]) -> str:
    """Time what a tuned plan has to choose from, as far as the table and its file lack it.

    inputs: their sizes count. Returns a line for the report.
    """
    load_times()
    start = time.perf_counter()
    timed, known = torch.ops.cnnfast.tune_plan(inputs, weights, plan)
    seconds = time.perf_counter() - start
    if timed:
        save_times()
    return f"tuned: {timed} layers timed, {known} from the cache, in {seconds:.1f} s"


def cache_file() -> Path:
    """Where the measured times of this machine are."""
    return user_cache() / f"{'-'.join(['tuning', *map(_slug, _identity().values())])}.json"


def load_times() -> None:
    """Add the file's times to the table; a file that is damaged is left out with a warning."""
    try:
        _add_file()
    except FileNotFoundError:
        return
    except _UNUSABLE as error:
        _warn(
            f"the file of measured times is damaged or cannot be read ({_words(error)}); it is not used, and "
            "tuning writes it anew"
        )


def save_times() -> None:
    """Write the table to its file, with what other processes have written there."""
    with contextlib.suppress(*_UNUSABLE):  # reported when it was read first
        _add_file()
    rows = ",\n".join(map(json.dumps, torch.ops.cnnfast.conv_times().tolist()))
    head = json.dumps({**_identity(), "columns": COLUMNS})
    try:
        write_atomically(cache_file(), f'{head[:-1]}, "times": [\n{rows}\n]}}\n')
    except (OSError, RuntimeError) as error:
        _warn(f"measured times are not kept for other processes ({_words(error)})")


def _add_file() -> None:
    """Raises one of _UNUSABLE. A file of another machine or version adds nothing."""
    content = json.loads(cache_file().read_text(encoding="utf-8"))
    ours = all(content[key] == value for key, value in _identity().items())
    if ours and content["columns"] == [*COLUMNS]:
        torch.ops.cnnfast.add_conv_times(torch.tensor(content["times"]))


def _identity() -> dict[str, str]:
    from cnnfast import __version__
    from cnnfast.benchmarking.machine import cpu_name  # imports all of cnnfast

    return {"cnnfast": __version__, "cpu": cpu_name(), "isa": _ext.active_isa()}


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "_" for c in text)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _warn(message: str) -> None:
    warnings.warn(f"cnnfast: {message}", RuntimeWarning, stacklevel=3)
