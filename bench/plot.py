"""``python -m bench plot``: SVG pictures of results, the same bytes from the same file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .report import RESULTS, read_csv
from .summary import PLAIN, Summary, summarise, where

_STYLE: Any = {
    "svg.hashsalt": "fastdistill",  # ids of elements
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
COLOURS = ("#c44e52", "#dd8452", "#55a868")
OURS_COLOUR = "#4c72b0"
_OTHER = "fastest other"
_UNITS = {"N": "tokens N", "V": "vocabulary V", "K": "listed tokens K", "chunk": "rows per chunk"}


def style() -> Any:
    """A context in which pictures of this package are drawn."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def save(figure: Any, path: Path) -> Path:
    """Write a picture whose bytes depend on its content alone."""
    nothing = dict.fromkeys(("Date", "Creator"))  # neither may change from run to run
    figure.savefig(path, format="svg", metadata=nothing, bbox_inches="tight")
    return path


# ---- ratios -----------------------------------------------------------------------------------


def _number(value: float | None) -> str:
    """With three digits or more, and no exponent; empty where there is none."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _bars(summary: Summary) -> Iterator[tuple[str, float, str]]:
    """(series, ratio, text beside the bar) of a case; without a time the bar has no length."""
    for name in PLAIN:
        ratio = summary.ratios[name]
        if ratio is not None:
            yield name, ratio, _number(ratio)
        elif summary.skipped.get(name):
            yield name, 1.0, summary.skipped[name]
    if summary.fastest_other is not None:
        name, ratio = summary.fastest_other
        yield _OTHER, ratio, f"{_number(ratio)} {name}"


def draw_ratios(summaries: list[Summary], title: str) -> Any:
    """Bars of the time of each rival over ours, by case, on a logarithmic axis."""
    from matplotlib.figure import Figure

    timed = [summary for summary in summaries if summary.ours_ms is not None]
    series = (*PLAIN, _OTHER)
    figure = Figure(figsize=(7.0, 0.9 + 0.42 * len(timed)), layout="constrained")
    axes = figure.subplots()
    for position, summary in enumerate(timed):
        for name, ratio, text in _bars(summary):
            index = series.index(name)
            y = position + 0.27 * (index - 1)
            axes.barh(y, ratio - 1, 0.25, left=1, color=COLOURS[index])
            axes.text(1.04 * max(ratio, 1), y, text, va="center", fontsize=6)
    axes.axvline(1, color=OURS_COLOUR, linewidth=1.2)
    axes.set_yticks(range(len(timed)), [f"{s.title}\n{_number(s.ours_ms)} ms" for s in timed])
    axes.set(xscale="log", ylim=(len(timed) - 0.5, -0.5), xlabel="time / time of fastdistill")
    axes.xaxis.set_major_formatter("{x:g}")
    bars = zip(series, COLOURS, strict=True)
    handles = [axes.barh(0, 0, left=1, color=colour, label=name) for name, colour in bars]
    figure.legend(handles=handles, ncols=3, loc="outside upper center", frameon=False)
    axes.set_title(title, fontsize=7, loc="right")
    return figure


# ---- scaling ----------------------------------------------------------------------------------


def _curve(axes: Any, xs: list[float], ys: list[float]) -> None:
    axes.plot(xs, ys, "o-", color=OURS_COLOUR, markersize=3, linewidth=1)
    axes.set_xscale("log", base=2)


def _draw_time(axes: Any, xs: list[float], rows: list[dict[str, str]]) -> None:
    low, ms, high = ([float(row[f"ms_p{p}"]) for row in rows] for p in (20, 50, 80))
    _curve(axes, xs, ms)
    axes.fill_between(xs, low, high, color=OURS_COLOUR, alpha=0.2, linewidth=0)
    if rows[0]["curve"] in ("N", "V"):
        line = [ms[-1] * x / xs[-1] for x in xs]
        axes.plot(xs, line, "--", color="grey", linewidth=0.8, label="linear")
        axes.legend(frameon=False)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(0, 1.15 * max(high))


def _draw_memory(axes: Any, xs: list[float], rows: list[dict[str, str]]) -> None:
    peak, gradients = (
        [float(row[f"{of}_mb"]) for row in rows] for of in ("peak_extra", "gradients")
    )
    _curve(axes, xs, peak)
    axes.plot(xs, gradients, ":", color="grey", linewidth=1, label="gradients")
    axes.legend(frameon=False)
    axes.set_ylim(0, 1.15 * max(peak))


def draw_scaling(rows: list[dict[str, str]], title: str) -> Any:
    """Time above and extra memory below, one column for each curve."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["curve"] for row in rows))
    figure = Figure(figsize=(2.1 * len(names), 3.8), layout="constrained")
    both = figure.subplots(2, len(names), squeeze=False, sharex="col")
    for name, (above, below) in zip(names, both.T, strict=True):
        own = [row for row in rows if row["curve"] == name]
        xs = [float(row["x"]) for row in own]
        _draw_time(above, xs, own)
        _draw_memory(below, xs, own)
        below.set_xlabel(_UNITS.get(name, name))
        below.set_xticks(xs[:: math.ceil(len(xs) / 4)])
        below.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:.0f}k" if x >= 1024 else f"{x:g}")
    both[0, 0].set_ylabel("time, ms")
    both[1, 0].set_ylabel("extra memory, MB")
    figure.suptitle(title, fontsize=7)
    return figure


# ---- files ------------------------------------------------------------------------------------


def draw(path: Path) -> Path:
    """Draw what a file of results holds; the picture has its name, and ends in .svg."""
    facts, rows = read_csv(path)
    with style():
        if "curve" in rows[0]:
            figure = draw_scaling(rows, where(facts))
        else:
            figure = draw_ratios(summarise(rows), where(facts))
        return save(figure, path.with_suffix(".svg"))


def update(paths: Iterable[Path] = ()) -> list[Path]:
    """Draw some files of results, or all that are committed."""
    return [draw(path) for path in paths or sorted(RESULTS.glob("*.csv"))]
