"""Rows of results: to a table for the terminal, and to a CSV file that says where it was made."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

import fastdistill as fd
from fastdistill._head import bfloat16_pays_on_cpu

from .cases import Case
from .memory import ROOT
from .provider import Provider

RESULTS = Path(__file__).with_name("results")


@dataclass
class Row:
    """What one provider did with one case. None: not measured, or without meaning.

    ``divergence`` is "cross_entropy" where the labels are all that there is to learn; ``variant``
    says what is unusual: "forward_only", "half_masked", real "text".
    Ratios are time over the time of fastdistill. ``gb_per_s`` counts every input read once and
    every gradient written once, however often a provider moves them; ``gflop_per_s`` counts the
    GEMMs. Errors are relative to the largest true magnitude; peak memory is what a pass takes
    beyond its inputs, its gradients included.
    """

    case: str
    kind: str
    divergence: str
    dtype: str
    n: int
    v: int
    d_student: int
    d_teacher: int
    k: int
    variant: str
    provider: str
    role: str
    runs: int = 0
    ms_p20: float | None = None
    ms_p50: float | None = None
    ms_p80: float | None = None
    ratio_to_ours: float | None = None
    limit_ms: float | None = None
    percent_of_limit: float | None = None
    gb_per_s: float | None = None
    gflop_per_s: float | None = None
    peak_extra_mb: float | None = None
    value_error: float | None = None
    gradient_error: float | None = None
    note: str = ""

    @classmethod
    def of(cls, case: Case, provider: Provider, note: str = "") -> Row:
        """A row that has no measurements yet."""
        return cls(
            case.name, case.kind, case.objective, str(case.dtype).removeprefix("torch."),
            case.rows, case.vocab, case.student_width, case.teacher_width, case.listed,
            case.variant, provider.name, provider.role, note=note,
        )  # fmt: skip


# ---- where it was made ------------------------------------------------------------------------


def cpu_model() -> str:
    """The name that the processor gives itself."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()


def csv_path(ending: str) -> Path:
    """The file of this machine's processor whose name ends so; many call themselves the same."""
    words = re.findall(r"[a-z0-9]+", cpu_model().lower().replace("(r)", ""))
    words.append(fd._C.current_isa())
    if bfloat16_pays_on_cpu():
        words.append("bf16-gemms")
    return RESULTS / f"{'-'.join(words)}-{ending}.csv"


def default_csv() -> Path:
    """The file of the cases of this machine, with its number of threads."""
    return csv_path(f"{torch.get_num_threads()}-threads")


def _commit() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.check_output(command, cwd=ROOT, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def header() -> dict[str, str]:
    """Everything about machine and software that the times depend on."""
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": f"{cpu_model()} ({platform.machine()}), {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "instruction set": fd._C.current_isa(),
        "bfloat16 GEMMs": "native" if bfloat16_pays_on_cpu() else "widened to float32",
        "huge pages": huge_pages.read_text().strip() if huge_pages.exists() else "unknown",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "compiler": fd._C.COMPILER,
        "fastdistill": f"{fd.__version__}, commit {_commit()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


# ---- output -----------------------------------------------------------------------------------


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_csv(path: Path, facts: dict[str, str], rows: Sequence[Any]) -> None:
    """``# fact: value`` lines, then the names of the fields of the rows, then the rows."""
    columns = [field.name for field in fields(rows[0])]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in facts.items())
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_text(getattr(row, name)) for name in columns] for row in rows)


def read_csv(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """(facts, rows as text by column)."""
    lines = path.read_text().splitlines()
    facts = [line[2:].split(": ", 1) for line in lines if line.startswith("# ")]
    return dict(facts), list(csv.DictReader(line for line in lines if not line.startswith("# ")))


_TABLE = {
    "provider": "provider",
    "runs": "runs",
    "ms_p20": "ms p20",
    "ms_p50": "p50",
    "ms_p80": "p80",
    "ratio_to_ours": "x ours",
    "percent_of_limit": "% limit",
    "gb_per_s": "GB/s",
    "gflop_per_s": "GFLOP/s",
    "peak_extra_mb": "peak MB",
    "value_error": "value err",
    "gradient_error": "grad err",
    "note": "note",
}


def _cell(column: str, value: object) -> str:
    if column.endswith("error") and value is not None:
        return f"{value:.1e}"
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return _text(value)


def format_table(rows: list[Row]) -> str:
    """The rows of one case, under its name."""
    lines = [[_cell(column, getattr(row, column)) for column in _TABLE] for row in rows]
    return f"{rows[0].case}\n{aligned([list(_TABLE.values()), *lines])}"


def aligned(lines: list[list[str]]) -> str:
    """Cells in columns; all but the first and the last of a line end in one place."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    last = len(widths) - 1

    def joined(line: list[str]) -> str:
        cells = (
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join(map(joined, lines))
