"""The table of the README, from committed results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .document import ROOT, replace_block
from .matrix import DEFAULT
from .summary import PLAIN, Summary, read

_HEAD = (
    "| forward + backward | fastdistill | torch eager | torch.compile | fastest other "
    "| our extra memory | torch eager's |",
    "|---|--:|--:|--:|--:|--:|--:|",
)


def _cells(summary: Summary) -> Iterator[str]:
    """One line of the table: a case, our time, the rivals' ratios, both peaks."""
    yield summary.title
    yield "" if summary.ours_ms is None else f"{summary.ours_ms:.0f} ms"
    for name in PLAIN:
        ratio = summary.ratios[name]
        yield summary.skipped.get(name, "") if ratio is None else f"{ratio:.1f} ×"
    other = summary.fastest_other
    yield "" if other is None else f"{other[1]:.1f} × ({other[0]})"
    for peak in summary.peaks_mb.values():
        yield "" if peak is None else f"{peak:.0f} MB"


def table(path: Path) -> str:
    """Markdown of the default cases, and where it was made."""
    place, summaries = read(path)
    default = {case.name for case in DEFAULT}
    shown = [summary for summary in summaries if summary.case in default]
    lines = [*_HEAD, *("| " + " | ".join(_cells(summary)) + " |" for summary in shown)]
    return "\n".join(
        [
            *lines,
            "",
            f"Times as multiples of ours, medians of one interleaved run ({place}); "
            f"`python -m bench`, all rows in [`{path.name}`](bench/results/{path.name}).",
        ]
    )


def update(path: Path) -> None:
    """Write the table into the README."""
    replace_block(ROOT / "README.md", "bench", table(path))
