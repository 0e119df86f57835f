"""``python -m bench compare REV``: the installed build and that of another revision, in turns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from .cases import Case
from .contestant import Contestant
from .measure import percentiles
from .report import aligned
from .revision import built

Turn = Callable[[], float]
"""Makes a pass and returns its seconds."""


def take_turns(
    here: Turn, there: Turn, *, budget: float, most_rounds: int = 50
) -> list[tuple[float, float]]:
    """(seconds here, seconds there) of each round; who goes first alternates.

    At least three rounds, and no further one once both together have taken ``budget`` seconds.
    """
    pairs: list[tuple[float, float]] = []
    while len(pairs) < 3 or (len(pairs) < most_rounds and sum(map(sum, pairs)) < budget):
        if len(pairs) % 2 == 0:
            pair = here(), there()
        else:
            second, first = there(), here()
            pair = first, second
        pairs.append(pair)
    return pairs


def run_case(case: Case, target: Path, budget: float) -> list[tuple[float, float]]:
    """Rounds of a case, by the installed package and by the one in ``target``."""
    with (
        contextlib.closing(Contestant(case, None)) as here,
        contextlib.closing(Contestant(case, target)) as there,
    ):
        here.package()
        if not (package := there.package()).is_relative_to(target):
            raise RuntimeError(f"fastdistill must be imported from {target}, got {package}")
        return take_turns(here.turn, there.turn, budget=budget)


def line(name: str, pairs: list[tuple[float, float]]) -> list[str]:
    """Cells: both medians, then the percentiles of the ratios of the pairs, and how many."""
    here, there = (percentiles(list(times), 1e3).p50 for times in zip(*pairs, strict=True))
    ratios = percentiles([there / here for here, there in pairs])
    cells = [f"{here:.3f}", f"{there:.3f}", *(f"{ratio:.3f}" for ratio in ratios)]
    return [name, *cells, str(len(pairs))]


def run(revision: str, cases: Iterable[Case], budget: float) -> None:
    """Print how long the other revision takes, as a multiple of the installed one, by case."""
    head = ["case", "ms here", f"ms {revision}", "ratio p20", "p50", "p80", "rounds"]
    lines = [head]
    with built(revision) as target:
        for case in cases:
            lines.append(line(case.name, run_case(case, target, budget)))
            print(" ".join(lines[-1]), flush=True)
    print(f"\n{aligned(lines)}\nratio: {revision} / here, pass by pass; above 1 it is slower")
