"""``python -m bench speed``: the cases, each printed and written as it is done."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from . import report
from .cases import Case
from .limits import measure_machine
from .suite import LEAST_TURNS, Limits, run_case


def run(cases: Iterable[Case], limits: Limits, output: Path | None) -> None:
    """Run the cases; ``output`` is written after each, so that a run can be cut short.

    What the machine can do is measured anew for each: clocks and neighbours change within minutes.
    """
    facts = report.header() | measure_machine().describe()
    facts["timing"] = (
        f"turns of two runs, the second counts; at most {limits.budget:g} s, times the patience of "
        f"the case, or 25 turns each; of ours and of the limits at least {LEAST_TURNS}"
    )
    print("\n".join(f"{name:<28}{value}" for name, value in facts.items()), flush=True)
    rows, start = [], time.perf_counter()
    for case in cases:
        rows += (new := run_case(case, measure_machine(), limits))
        print(f"\n{report.format_table(new)}", flush=True)
        if output is not None:
            report.write_csv(output, facts, rows)
    print(f"\n{time.perf_counter() - start:.0f} s" + (f", wrote {output}" if output else ""))
