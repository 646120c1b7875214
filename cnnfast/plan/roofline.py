"""The roofline picture of a profile (Williams, Waterman, Patterson, CACM 52(4), 2009)."""

import os
from pathlib import Path
from typing import Any

from cnnfast.files import replacing
from cnnfast.limits import Limits
from cnnfast.plan.profile import Profile, ProfileRow

_NAMED = 6  # layers in the legend
_LARGEST = 600  # area, in square points, of a layer that takes all the time
_SMALLEST = 8


def draw(profile: Profile, path: str | os.PathLike) -> Path:
    """See Profile.roofline."""
    try:
        from matplotlib.figure import Figure  # no pyplot: it would pick a backend for the whole process
    except ImportError as error:
        raise ImportError("roofline needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    points = [(number, row) for number, row in enumerate(profile.rows) if row.gflops]
    _roofs(axes, profile.limits, [row.intensity for _, row in points])
    _layers(axes, points, profile.seconds)
    axes.set_xlabel("operations per byte (input, weights and output once, float32)")
    axes.set_ylabel("GFLOP/s in operations of direct convolution")
    axes.set_title(_title(profile, points), fontsize=9)
    axes.grid(which="major", alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    return Path(path)


def _roofs(axes: Any, limits: Limits, intensities: list[float]) -> None:
    """A line per place that is read from, up to the peak, over the points and the last corner."""
    corners = [limits.flops_per_s / rate for rate in limits.read_bytes_per_s.values()]
    left, right = min((*intensities, *corners)) / 2, max((*intensities, *corners)) * 2
    for (place, rate), corner in zip(limits.read_bytes_per_s.items(), corners, strict=True):
        ends = [limits.attainable(x, place) / 1e9 for x in (left, corner)]
        axes.plot((left, corner), ends, linewidth=1, label=f"{place}: {rate / 1e9:.0f} GB/s read")
    peak = limits.flops_per_s / 1e9
    label = f"multiply-adds: {peak:.0f} GFLOP/s"
    axes.plot((min(corners), right), (peak, peak), "k", linewidth=1, label=label)


def _layers(axes: Any, points: list[tuple[int, ProfileRow]], seconds: float) -> None:
    """A point for each row, the slowest with their numbers in it and their names in the legend."""
    x, y = [row.intensity for _, row in points], [row.gflops for _, row in points]
    axes.scatter(x, y, [max(_SMALLEST, _LARGEST * row.seconds / seconds) for _, row in points], alpha=0.5)
    slowest = sorted(points, key=lambda point: point[1].seconds, reverse=True)[:_NAMED]
    for number, row in slowest:
        axes.annotate(str(number), (row.intensity, row.gflops), fontsize=7, ha="center", va="center")
        first = row.name.split(" + ")[0]
        axes.plot([], [], " ", label=f"node {number}, {first}: {row.seconds / seconds:.0%} of the time")


def _title(profile: Profile, points: list[tuple[int, ProfileRow]]) -> str:
    shape = "×".join(map(str, profile.input_shape))
    shown = sum(row.seconds for _, row in points) / profile.seconds if profile.seconds else 0.0
    return (
        f"input {shape}, {profile.limits.team}: {profile.seconds * 1e3:.3g} ms, "
        f"{profile.gflops:.0f} GFLOP/s ({profile.percent_of_peak():.0f} % of the peak)\n"
        f"points are as large as their share of the time, {shown:.0%} together"
    )
