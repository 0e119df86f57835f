"""Time: providers take turns, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

Clock = Callable[[], float]


class Percentiles(NamedTuple):
    """Of the times of one provider, or of the ratios of two."""

    p20: float
    p50: float
    p80: float


def percentiles(values: list[float], scale: float = 1.0) -> Percentiles:
    """Interpolated percentiles, times ``scale``: 1e3 makes milliseconds of seconds."""
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    found = torch.quantile(torch.tensor(values, dtype=torch.float64), levels)
    return Percentiles(*(scale * found).tolist())


def time_once(runner: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds of one run; its results are freed after the clock has stopped."""
    start = clock()
    result = runner()
    stop = clock()
    del result
    return stop - start


def interleave(
    runners: Mapping[str, Callable[[], object]],
    *,
    budget: float,
    most_rounds: int = 25,
    least_turns: Mapping[str, int] = MappingProxyType({}),
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of the runs of each provider, which take turns.

    In its turn a provider runs twice and the second run counts. The first one meets what another
    provider left behind: that one's data in the caches, and freed memory to be mapped in again.
    Every provider has one turn, or as many as ``least_turns`` gives it. Afterwards it takes part in
    a round only if one more run would, at its last speed, keep the sum of its counted runs within
    ``budget`` seconds.
    """
    samples: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(most_rounds):
        for name, runner in runners.items():
            own = samples[name]
            if len(own) < least_turns.get(name, 1) or sum(own) + own[-1] <= budget:
                runner()
                own.append(time_once(runner, clock))
    return samples
