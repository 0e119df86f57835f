"""What the stages said: to a JSON file after each of them, and to short tables at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .process import Outcome, Record

TABLES: dict[str, tuple[str, ...]] = {
    "wheel": ("wheel", "note"),
    "tests": ("summary",),
    "sanitizer": ("tool", "summary"),
    "copy": ("bytes", "ms", "gb_per_s"),
    "gemm": ("shape", "gemm", "rows", "ms", "tflop_per_s"),
    "rows": ("kind", "dtype", "vocab", "ms", "gb_per_s", "best", "best_gb_per_s"),
    "divergences": ("divergence", "logits_gb_per_s", "top_k_gb_per_s"),
    "linear": ("shape", "provider", "ms", "ratio_to_ours", "tflop_per_s", "peak_mb", "note"),
    "hidden_gradient": ("shape", "rows", "waves", "ms", "tflop_per_s"),
    "weight_gradient": ("shape", "rows", "sum", "ms", "tflop_per_s"),
    "budget": ("shape", "mib", "chunk", "piece", "ms", "peak_mb"),
    "accuracy": ("input", "dtype", "value_error", "gradient_error", "wrong"),
    "repeats": ("runs", "combinations", "different"),
}
"""The columns that are printed of the records of each kind; other kinds are only in the JSON."""


class Results:
    """All that is known so far. Written to the file at once whenever a stage adds to it."""

    def __init__(self, path: Path, *, dry_run: bool) -> None:
        self.path = path
        self.facts: dict[str, str] = {}
        self.outcomes: dict[str, Outcome] = {}
        self._dry_run = dry_run

    def add(self, stage: str, outcome: Outcome) -> None:
        """Keep what became of a stage. Records of the kind "facts" are those of the machine."""
        for record in outcome.records:
            if record["what"] == "facts":
                self.facts |= {name: value for name, value in record.items() if name != "what"}
        outcome.records = [record for record in outcome.records if record["what"] != "facts"]
        self.outcomes[stage] = outcome
        self._write()

    def _write(self) -> None:
        """Replaces the file as a whole: a run that is cut short leaves a file that can be read."""
        stages = {name: asdict(outcome) for name, outcome in self.outcomes.items()}
        content = {"dry_run": self._dry_run, "facts": self.facts, "stages": stages}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(_json(content, depth=4) + "\n")
        part.replace(self.path)

    @property
    def ok(self) -> bool:
        """Whether every stage ended well."""
        return all(outcome.status == "ok" for outcome in self.outcomes.values())

    def tables(self) -> str:
        """Facts, stages, and the columns of ``TABLES``."""
        blocks = [_align([[name, value] for name, value in self.facts.items()])]
        records = [record for o in self.outcomes.values() for record in o.records]
        for what, columns in TABLES.items():
            of_kind = [record for record in records if record["what"] == what]
            if of_kind:
                blocks.append(f"{what}\n{_table(of_kind, columns)}")
        lines = [["stage", "status", "seconds"]]
        lines += [[name, o.status, f"{o.seconds:.0f}"] for name, o in self.outcomes.items()]
        return "\n\n".join([*blocks, _align(lines)])


def _json(value: Any, depth: int) -> str:
    """JSON that has lines down to a depth: those of a stage's records are one each."""
    if depth == 0 or not value or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "[\n" + ",\n".join(_json(item, depth - 1) for item in value) + "\n]"
    items = (f"{json.dumps(key)}: {_json(item, depth - 1)}" for key, item in value.items())
    return "{\n" + ",\n".join(items) + "\n}"


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0e}" if column.endswith("error") else f"{value:.4g}"
    return str(value)


def _table(records: Iterable[Record], columns: Sequence[str]) -> str:
    """The columns that at least one record has."""
    records = list(records)
    shown = [name for name in columns if any(r.get(name) not in (None, "") for r in records)]
    return _align(
        [shown, *([_cell(name, record.get(name)) for name in shown] for record in records)]
    )


def _align(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)
