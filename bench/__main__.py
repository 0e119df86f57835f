"""Measures fastdistill against its rivals and against the limits of the machine.

Without a command it is ``speed``. Compare only numbers of one run, on a quiet machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from . import accuracy, compare, matrix, plot, readme, report, scaling, speed
from .cases import Case
from .gpu import report as gpu_report
from .suite import Limits

COMMANDS = {
    "speed": "time, memory and errors of cases, ours and those of every rival (the default)",
    "scaling": "time and memory of ours along N, V, K, chunk size and threads",
    "compare": "the installed build against another revision of this repository",
    "accuracy": "errors against float64, into ARCHITECTURE.md",
    "plot": "pictures of results, beside them",
    "readme": "the README's tables, and the pictures, of committed results",
}
_QUICK_BUDGET = 0.2


def _add_cases(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--only", metavar="PATTERN", help="of all cases those whose name contains it, with * and ?")
    add("--all", action="store_true", help="all cases (two hours), not those of 35 minutes")
    add(
        "--budget", metavar="SECONDS", type=float,
        help="for the timed runs of one provider and case "
        f"({Limits().budget:g}, with --quick {_QUICK_BUDGET:g})",
    )  # fmt: skip


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="much smaller sizes: does it work?")
    parser.add_argument("--threads", type=int, help="default: those of torch")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="CSV", type=Path, nargs="?", const=Path(),
        help="write the rows to this file; without a name: into bench/results",
    )  # fmt: skip
    parser.add_argument("--plot", action="store_true", help="draw that file afterwards")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    by_name = {
        name: commands.add_parser(name, help=text, description=f"{text}.")
        for name, text in COMMANDS.items()
    }
    for name in ("speed", "scaling", "compare", "accuracy"):
        _add_measuring(by_name[name])
    for name in ("speed", "compare"):
        _add_cases(by_name[name])
    for name in ("speed", "scaling"):
        _add_output(by_name[name])
    by_name["speed"].add_argument("--list", action="store_true", help="print the names and stop")
    by_name["speed"].add_argument(
        "--longest-run", metavar="SECONDS", type=float, default=Limits().longest_run,
        help="providers whose GEMMs are predicted to take longer are left out (%(default)s)",
    )  # fmt: skip
    by_name["compare"].add_argument("revision", metavar="REV", help="as git names it")
    by_name["plot"].add_argument("csv", type=Path, nargs="*", help="default: all committed results")
    by_name["readme"].add_argument("csv", type=Path, nargs="?", help="default: this machine's")
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    named = arguments and arguments[0] in (*COMMANDS, "-h", "--help")
    options = _parser().parse_args(arguments if named else ["speed", *arguments])
    if getattr(options, "plot", False) and options.output is None:
        raise SystemExit("--plot needs --output: there is nothing to draw without a file")
    return options


def _cases(options: argparse.Namespace) -> list[Case]:
    chosen = matrix.select(everything=options.all, quick=options.quick, pattern=options.only)
    if not chosen:
        raise SystemExit(f"no case matches {options.only}")
    return chosen


def _budget(options: argparse.Namespace) -> float:
    default = _QUICK_BUDGET if options.quick else Limits().budget
    return default if options.budget is None else float(options.budget)


def _speed(options: argparse.Namespace) -> None:
    cases = _cases(options)
    if options.list:
        print("\n".join(case.name for case in cases))
        return
    output = report.default_csv() if options.output == Path() else options.output
    speed.run(cases, Limits(_budget(options), options.longest_run), output)
    if options.plot:
        print(f"drew {plot.draw(output)}")


def _scaling(options: argparse.Namespace) -> None:
    named = report.csv_path("scaling") if options.output == Path() else options.output
    scaling.run(quick=options.quick, output=named)
    if options.plot:
        print(f"drew {plot.draw(named)}")


def _accuracy(options: argparse.Namespace) -> None:
    if options.quick:
        print(accuracy.markdown(vocab=2000))
    else:
        accuracy.update(vocab=32000)


def _readme(options: argparse.Namespace) -> None:
    readme.update(options.csv or report.default_csv())
    gpu_report.update()
    plot.update()


_RUN = {
    "speed": _speed,
    "scaling": _scaling,
    "compare": lambda options: compare.run(options.revision, _cases(options), _budget(options)),
    "accuracy": _accuracy,
    "plot": lambda options: print("\n".join(map(str, plot.update(options.csv)))),
    "readme": _readme,
}


def main() -> None:
    """Run what the command line asks for."""
    options = parse(sys.argv[1:])
    if getattr(options, "threads", None):
        torch.set_num_threads(options.threads)
    _RUN[options.command](options)


if __name__ == "__main__":
    main()
