"""What a call allocates: torch's own count, from the profiler's events."""

from collections.abc import Callable
from typing import Any

import torch


def peak_allocated(call: Callable[[], Any]) -> int:
    """Bytes of CPU tensors that lived at once during `call`, beyond those that lived before it.

    Memory that a library takes by itself (packed weights, scratch memory) is not among them: peaks of the
    process's resident memory count it.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
