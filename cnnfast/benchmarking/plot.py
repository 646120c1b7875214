"""The bar chart of a benchmark."""

from pathlib import Path

from .result import BASELINES, Result


def draw(result: Result, path: Path) -> None:
    """Horizontal bars of speed-up over eager, one group a case, with milliseconds beside each bar."""
    # Figure without pyplot: no global state, no window system.
    from matplotlib.figure import Figure

    groups = [(name, [row for row in rows if row.timed]) for name, rows in result.groups()]
    groups = [(name, rows) for name, rows in groups if rows]
    bars = sum(len(rows) + 1 for _, rows in groups)
    figure = Figure(figsize=(9, max(2.5, 0.28 * bars + 1.2)), layout="constrained")
    axes = figure.add_subplot()
    contenders = list(dict.fromkeys(row.contender for _, rows in groups for row in rows))
    position, ticks, labelled = 0.0, [], set()
    for name, rows in groups:
        ticks.append((position + (len(rows) - 1) / 2, name.replace(" batch", "\nbatch", 1)))
        for row in rows:
            speedup = result.speedup(row)
            length = 0.0 if speedup is None else speedup
            label = None if row.contender in labelled else row.contender
            labelled.add(row.contender)
            colour = f"C{contenders.index(row.contender) % 10}"
            axes.barh(position, length, color=colour, label=label)
            axes.annotate(f" {row.median_s * 1e3:.3g} ms", (length, position), va="center", fontsize=7)
            position += 1
        position += 1
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_xlabel(f"times faster than {' or '.join(BASELINES)} (medians)")
    axes.set_title(result.header["machine"]["cpu"], fontsize=9)
    axes.margins(x=0.12)
    if contenders:
        figure.legend(fontsize=7, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=130, format="png")
