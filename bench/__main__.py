"""``python -m bench``: time and memory. ``accuracy``, ``readme``: tables of the documents."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from . import accuracy, cases, readme, report
from .limits import measure_machine
from .suite import Limits, run_case


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    defaults = Limits()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = parser.add_argument
    add("what", nargs="?", choices=("speed", "accuracy", "readme"), default="speed")
    add("--quick", action="store_true", help="much smaller cases")
    add("--only", metavar="PATTERN", help="cases whose name contains it; * and ? are wildcards")
    add("--threads", type=int, help="default: those of torch")
    add("--list", action="store_true", help="print the names of the cases and stop")
    add(
        "--output", metavar="CSV", type=Path, nargs="?", const=Path(), default=None,
        help="write the rows to this file; without a name: bench/results/<machine>.csv",
    )  # fmt: skip
    add(
        "--budget", metavar="SECONDS", type=float, default=defaults.budget,
        help="for the timed runs of one provider and case (%(default)s)",
    )  # fmt: skip
    add(
        "--longest-run", metavar="SECONDS", type=float, default=defaults.longest_run,
        help="providers whose GEMMs are predicted to take longer are left out (%(default)s)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def speed(arguments: argparse.Namespace) -> None:
    """Run the cases, print each as it is done, write them all at the end."""
    chosen = cases.select(cases.QUICK if arguments.quick else cases.FULL, arguments.only)
    if arguments.list or not chosen:
        print("\n".join(case.name for case in chosen) or f"no case matches {arguments.only}")
        return
    limits = Limits(arguments.budget, arguments.longest_run)
    machine = measure_machine()
    facts = report.header() | machine.describe()
    facts["timing"] = (
        f"turns of two runs, the second counts; at most {limits.budget:g} s or 25 turns each"
    )
    print("\n".join(f"{name:<28}{value}" for name, value in facts.items()), flush=True)
    path = report.default_csv() if arguments.output == Path() else arguments.output
    rows, start = [], time.perf_counter()
    for case in chosen:
        rows += (new := run_case(case, machine, limits))
        print(f"\n{report.format_table(new)}", flush=True)
        if path is not None:  # after each case, so that a run can be cut short
            report.write_csv(path, facts, rows)
    print(f"\n{time.perf_counter() - start:.0f} s" + (f", wrote {path}" if path else ""))


def main() -> None:
    """Run what the command line asks for."""
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.what == "accuracy":
        if arguments.quick:
            print(accuracy.markdown(vocab=2000))
        else:
            accuracy.update(vocab=32000)
    elif arguments.what == "readme":
        readme.update(arguments.output or report.default_csv())
    else:
        speed(arguments)


if __name__ == "__main__":
    main()
