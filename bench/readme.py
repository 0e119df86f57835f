"""``python -m bench readme CSV``: the table of the README, from committed results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .document import ROOT, replace_block
from .report import read_csv

_RIVALS = {"torch eager": "torch eager", "torch.compile": "torch compile"}


def _cells(name: str, rows: dict[str, dict[str, str]]) -> Iterator[str]:
    """One line of the table: a case, our time, the rivals' ratios, both peaks."""
    ours = rows["fastdistill"]
    yield name
    yield f"{float(ours['ms_p50']):.0f} ms" if ours["ms_p50"] else ""
    for provider in _RIVALS:
        rival = rows.get(provider, {})
        ratio, note = rival.get("ratio_to_ours"), rival.get("note", "")
        yield f"{float(ratio):.1f} ×" if ratio else ("too slow" if "skipped" in note else "")
    for provider in ("fastdistill", "torch eager"):
        peak = rows.get(provider, {}).get("peak_extra_mb")
        yield f"{float(peak):.0f} MB" if peak else ""


def _title(row: dict[str, str]) -> str:
    what = f"{row['kind'].replace('_', '-')}, {row['divergence']}, {row['dtype']}"
    return f"{what}, N={row['n']}, V={row['v']}"


def table(path: Path) -> str:
    """Markdown of all cases, and where it was made."""
    facts, rows = read_csv(path)
    lines = [
        "| forward + backward | fastdistill | torch eager | torch.compile | our extra memory "
        "| torch eager's |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        of_case = {row["provider"]: row for row in rows if row["case"] == case}
        title = _title(of_case["fastdistill"])
        lines.append("| " + " | ".join(_cells(title, of_case)) + " |")
    where = f"{facts['cpu']}, {facts['instruction set']}, torch {facts['torch']}"
    where += f", {facts['threads']} threads, {facts['date']}"
    lines += [
        "",
        f"Times as multiples of ours, medians of one interleaved run ({where}); `python -m bench`, "
        f"all rows in [`{path.name}`](bench/results/{path.name}).",
    ]
    return "\n".join(lines)


def update(path: Path) -> None:
    """Write the table into the README."""
    replace_block(ROOT / "README.md", "bench", table(path))
