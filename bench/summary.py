"""Committed results as the README and the plots tell them: ours, and three rivals of each case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .report import read_csv

Row = dict[str, str]
PLAIN = ("torch eager", "torch.compile")
"""The rivals that nearly every case has; of the others the fastest one is told."""


@dataclass(frozen=True)
class Summary:
    """One case of a file of results. None: not measured."""

    case: str
    title: str
    ours_ms: float | None
    ratios: dict[str, float | None]  # of PLAIN: time over ours
    skipped: dict[str, str]  # those of PLAIN that were not tried: "too slow" or "too large"
    fastest_other: tuple[str, float] | None  # name, time over ours
    peaks_mb: dict[str, float | None]  # of ours and of torch eager


def _number(row: Row | None, column: str) -> float | None:
    return float(row[column]) if row is not None and row[column] else None


def _title(row: Row) -> str:
    what = [row["kind"].replace("_", " "), row["divergence"], row["dtype"]]
    what += [f"N={row['n']}, V={row['v']}"]
    return ", ".join(filter(None, [*what, row.get("variant", "").replace("_", " ")]))


def _why_skipped(note: str) -> str:
    if not note.startswith("skipped"):
        return ""
    return "too large" if "memory" in note else "too slow"


def _fastest_other(rows: dict[str, Row]) -> tuple[str, float] | None:
    ratios = {
        name: ratio
        for name, row in rows.items()
        if row["role"] == "rival" and name not in PLAIN
        if (ratio := _number(row, "ratio_to_ours")) is not None
    }
    return min(ratios.items(), key=lambda item: item[1], default=None)


def _summary(case: str, rows: dict[str, Row]) -> Summary:
    ours = rows["fastdistill"]
    return Summary(
        case,
        _title(ours),
        _number(ours, "ms_p50"),
        {name: _number(rows.get(name), "ratio_to_ours") for name in PLAIN},
        {name: _why_skipped(rows[name]["note"]) for name in PLAIN if name in rows},
        _fastest_other(rows),
        {name: _number(rows.get(name), "peak_extra_mb") for name in ("fastdistill", PLAIN[0])},
    )


def summarise(rows: list[Row]) -> list[Summary]:
    """The cases of a file of results, in its order."""
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["provider"]] = row
    return [_summary(name, of_case) for name, of_case in cases.items()]


def where(facts: dict[str, str]) -> str:
    """On which machine, with what."""
    return (
        f"{facts['cpu']}, {facts['instruction set']}, torch {facts['torch']}, "
        f"{facts['threads']} threads, {facts['date']}"
    )


def read(path: Path) -> tuple[str, list[Summary]]:
    """(where, the cases) of a file of results."""
    facts, rows = read_csv(path)
    return where(facts), summarise(rows)
