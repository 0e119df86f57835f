"""One case: its providers chosen, checked, timed in turns and weighed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from . import check, text
from .cases import Case
from .gemms import GEMM_LIMIT, predicted_gemm_seconds
from .inputs import Inputs, build_inputs
from .limits import FRESH_GRADIENT, Machine
from .measure import interleave, percentiles, time_once
from .memory import measure_peak, unaffordable
from .provider import OURS, Provider, Result, Runner
from .providers import PROVIDERS
from .report import Row

LEAST_TURNS = 5
"""Of ours and of the limits, in a case whose runs take longer than the budget."""


@dataclass(frozen=True)
class Limits:
    """How much time may be spent, in seconds."""

    budget: float = 2.0  # on the timed runs of one provider and case, times Case.patience
    longest_run: float = 30.0  # predicted; a provider that takes longer is left out
    memory: float = 100.0  # on one measurement of memory


class WrongResultError(Exception):
    """A provider computes something else than the case."""


@dataclass
class _Entry:
    """A provider that takes part, and what is known about it."""

    row: Row
    provider: Provider
    runner: Runner
    first: float  # seconds of the first run


def participants(case: Case, providers: Iterable[Provider]) -> list[Provider]:
    """Those who can be asked to run the case at all."""
    return [
        provider
        for provider in providers
        if provider.applies(case) and provider.name in (case.only or (provider.name,))
    ]


def reason_to_skip(case: Case, provider: Provider, limits: Limits) -> str | None:
    """Why a participant is left out, or None."""
    unavailable = text.missing() if case.text else None
    if reason := unavailable or provider.missing() or unaffordable(case, provider):
        return reason
    predicted = predicted_gemm_seconds(case, provider) if case.timed else 0.0
    if predicted > limits.longest_run:
        return f"GEMMs predicted to take {predicted:.0f} s, {limits.longest_run:.0f} s allowed"
    return None


def run_case(
    case: Case, machine: Machine, limits: Limits, providers: Iterable[Provider] = PROVIDERS
) -> list[Row]:
    """The rows of a case, one for each participant, also of those that are left out.

    Raises WrongResultError where fastdistill itself is wrong; a rival that is wrong is left out.
    """
    rows, kept = [], []
    for provider in participants(case, providers):
        reason = reason_to_skip(case, provider, limits)
        rows.append(Row.of(case, provider, f"skipped: {reason}" if reason else ""))
        if reason is None:
            kept.append((rows[-1], provider))
    if case.timed:
        kept = _time(case, machine, limits, kept)
    if case.weighed:
        for row, provider in kept:
            _weigh(case, limits, row, provider)
    return rows


# ---- time -------------------------------------------------------------------------------------


def _time(
    case: Case, machine: Machine, limits: Limits, kept: list[tuple[Row, Provider]]
) -> list[tuple[Row, Provider]]:
    """Fill in times and errors; returns those whose result is right."""
    torch.compiler.reset()  # else the many shapes of a suite exhaust the cache of one formula
    if not kept:
        return []
    inputs = build_inputs(case)
    true = check.truth(case, inputs)
    entries = [e for pair in kept if (e := _first_run(case, inputs, true, *pair)) is not None]
    seconds = _timed_runs(entries, limits.budget * case.patience)
    for entry in entries:
        own = seconds[entry.row.provider]
        entry.row.runs = len(own)
        entry.row.ms_p20, entry.row.ms_p50, entry.row.ms_p80 = percentiles(own, 1e3)
    _compare(case, machine, [entry.row for entry in entries])
    return [(entry.row, entry.provider) for entry in entries]


def _first_run(
    case: Case, inputs: Inputs, true: check.Truth, row: Row, provider: Provider
) -> _Entry | None:
    """Warm the provider up and check what it computes; None if that is not the case."""
    try:
        runner = provider.build(case, inputs)
        results: list[Result] = []
        first = time_once(lambda: results.append(runner()))
        if provider.role != "limit":
            found = check.errors(results.pop(), true, inputs.tokens.get("mask"))
            row.value_error, row.gradient_error = found
            if not check.is_right(found, case.dtype):
                raise WrongResultError(f"{provider.name} is wrong on {case.name}: {found}")
    except Exception as error:
        if provider.role == "ours":
            raise
        row.note = f"left out: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return None
    return _Entry(row, provider, runner, first)


def _timed_runs(entries: list[_Entry], budget: float) -> dict[str, list[float]]:
    """Seconds by name. Of a rival whose first run took the whole budget that one is the only one;
    ours and the limits, which differ by a few percent, have their turns at any speed."""
    runners, seconds, least_turns = {}, {}, {}
    for entry in entries:
        name, is_rival = entry.row.provider, entry.provider.role == "rival"
        if is_rival and entry.first > budget and not entry.provider.compiled:
            seconds[name] = [entry.first]
            entry.row.note = "one cold run"
        else:
            runners[name] = entry.runner
            least_turns[name] = 1 if is_rival else LEAST_TURNS
    return seconds | interleave(runners, budget=budget, least_turns=least_turns)


def _compare(case: Case, machine: Machine, rows: list[Row]) -> None:
    """Fill in what follows from the times of all."""
    ms = {row.provider: row.ms_p50 for row in rows}
    ours = ms.get(OURS.name)
    limit = ms.get(GEMM_LIMIT)
    if not case.has_head:
        limit = 1e3 * machine.seconds(case) + (ms.get(FRESH_GRADIENT.name) or 0.0)
    for row in rows:
        assert row.ms_p50 is not None
        row.ratio_to_ours = row.ms_p50 / ours if ours else None
        row.limit_ms = limit
        row.percent_of_limit = 100 * limit / row.ms_p50 if limit else None
        if row.role != "limit":
            row.gb_per_s = case.bytes / row.ms_p50 / 1e6
        if case.has_head:
            row.gflop_per_s = case.flops / row.ms_p50 / 1e6


# ---- memory -----------------------------------------------------------------------------------


def _weigh(case: Case, limits: Limits, row: Row, provider: Provider) -> None:
    if provider.role == "limit":
        return
    peak = measure_peak(case, provider, limits.memory)
    row.peak_extra_mb = peak.megabytes
    if not peak.complete:
        stopped = f"stopped after {limits.memory:.0f} s, its peak memory is at least this"
        row.note = "; ".join(filter(None, (row.note, stopped)))
