"""``python -m bench scaling``: how time and memory of ours grow, one size at a time.

At a small hidden size, so that a curve of long vocabularies and many tokens takes about a minute.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import report
from .cases import Case
from .gemms import our_chunk
from .inputs import build_inputs
from .measure import interleave, percentiles
from .memory import measure_peak
from .provider import OURS, Result, Runner

_TIMEOUT = 100.0
"""Seconds for one measurement of memory."""


@dataclass(frozen=True)
class Point:
    """A case of a curve, and the threads that it has."""

    curve: str  # what changes along it
    x: int
    case: Case
    threads: int


@dataclass(frozen=True)
class Row:
    """What was measured at a point; ``gradients_mb`` are a part of ``peak_extra_mb``."""

    curve: str
    x: int
    case: str
    n: int
    v: int
    k: int
    threads: int
    chunk: int  # rows
    runs: int
    ms_p20: float
    ms_p50: float
    ms_p80: float
    peak_extra_mb: float
    gradients_mb: float


def _powers(first: int, last: int, step: int = 2) -> list[int]:
    count = int(math.log(last / first, step)) + 1
    return [first * step**i for i in range(count)]


def curves(*, quick: bool) -> dict[str, list[Point]]:
    """The points of each curve, by what changes along it."""
    small = 8 if quick else 1
    base = Case(
        "linear", 1024 // small, 32768 // small, torch.float32, student_width=64, teacher_width=64
    )
    wide = replace(base, rows=2048 // small, vocab=16384 // small)
    lists = replace(base, kind="linear_top_k", teacher_width=0)
    cases = {
        "N": {n: replace(base, rows=n) for n in _powers(64, 8192 // small)},
        "V": {v: replace(base, vocab=v) for v in _powers(8192 // small, 262144 // small)},
        "K": {k: replace(lists, listed=k) for k in _powers(1, 1024, 4)},
        "chunk": {c: replace(wide, chunk_size=c) for c in _powers(16, wide.rows)},
    }
    threads = torch.get_num_threads()
    points = {
        curve: [Point(curve, x, case, threads) for x, case in of_curve.items()]
        for curve, of_curve in cases.items()
    }
    if (most := os.cpu_count() or 1) > 1:
        points["threads"] = [Point("threads", n, base, n) for n in _powers(1, most)]
    return points


# ---- measuring --------------------------------------------------------------------------------


def _with_threads(threads: int, runner: Runner) -> Runner:
    def run() -> Result:
        torch.set_num_threads(threads)
        return runner()

    return run


def _row(point: Point, seconds: list[float]) -> Row:
    case = point.case
    torch.set_num_threads(point.threads)
    peak = measure_peak(case, OURS, _TIMEOUT)
    gradients = (case.rows + case.vocab) * case.student_width * case.dtype.itemsize
    return Row(
        point.curve, point.x, case.name, case.rows, case.vocab, case.listed, point.threads,
        our_chunk(case), len(seconds), *percentiles(seconds, 1e3), peak.megabytes, gradients / 1e6,
    )  # fmt: skip


def measure(points: list[Point], budget: float) -> list[Row]:
    """The rows of a curve, whose points take turns; each has ``budget`` seconds."""
    threads = torch.get_num_threads()
    runners = {
        str(point.x): _with_threads(point.threads, OURS.build(point.case, build_inputs(point.case)))
        for point in points
    }
    seconds = interleave(runners, budget=budget)
    rows = [_row(point, seconds[str(point.x)]) for point in points]
    torch.set_num_threads(threads)
    return rows


# ---- what follows -----------------------------------------------------------------------------


def exponent(pairs: Iterable[tuple[float, float]]) -> float:
    """Least-squares slope of log y over log x: y grows as x to that power."""
    logs = torch.tensor([[math.log(x), math.log(y)] for x, y in pairs], dtype=torch.float64)
    x, y = (logs - logs.mean(0)).unbind(1)
    return float((x * y).sum() / (x * x).sum())


def statement(rows: list[Row]) -> str:
    """One sentence on a curve: how its time grows, and what its memory does."""
    first, last = rows[0], rows[-1]
    power = exponent((row.x, row.ms_p50) for row in rows)
    scratch = [row.peak_extra_mb - row.gradients_mb for row in rows]
    several = [mb for row, mb in zip(rows, scratch, strict=True) if row.n > row.chunk]
    text = (
        f"from {first.curve} = {first.x} to {last.x} time goes from {first.ms_p50:.3g} to "
        f"{last.ms_p50:.3g} ms, as {first.curve}^{power:.2f}; memory beyond the gradients from "
        f"{scratch[0]:.0f} to {scratch[-1]:.0f} MB"
    )
    if several:
        text += f", where there are several chunks {min(several):.0f} to {max(several):.0f} MB"
    return text


def run(
    *,
    quick: bool,
    output: Path | None,
    say: Callable[[str], None] = print,
) -> None:
    """Measure all curves; say what follows from each, and write rows and sentences."""
    facts, rows = report.header(), []
    for curve, points in curves(quick=quick).items():
        rows += (new := measure(points, budget=0.1 if quick else 2.0))
        facts[f"along {curve}"] = statement(new)
        say(f"{curve}: {facts[f'along {curve}']}")
        if output is not None:
            report.write_csv(output, facts, rows)
    if output is not None:
        say(f"wrote {output}")
