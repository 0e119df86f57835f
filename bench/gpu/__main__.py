"""``python -m bench.gpu``: builds, tests and measures this checkout on a machine with a GPU."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from .process import Outcome, run_stages
from .results import Results
from .stages import NAMES, ROOT, WORK, Stage, select


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    add = parser.add_argument
    add("--only", metavar="STAGE", nargs="+", choices=NAMES, help=", ".join(NAMES))
    add("--dry-run", action="store_true", help="every stage on the CPU, on tiny sizes")
    add("--wheels", metavar="DIR", type=Path, help="wheels of other packages to compare with")
    add(
        "--output", metavar="JSON", type=Path,
        help="what the results are written to (bench/results/gpu-NAME.json)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def gpu_name() -> str:
    """The name of the first GPU in letters and digits, with dashes between."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        name = subprocess.check_output(command, text=True, timeout=20).splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        name = "unknown"
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))


def default_output(*, dry_run: bool) -> Path:
    """The file of this machine's GPU; that of a dry run is nothing to keep."""
    if dry_run:
        return WORK / "dry-run.json"
    return ROOT / "bench" / "results" / f"gpu-{gpu_name()}.json"


def worker_command(arguments: argparse.Namespace, stage: Stage, records: Path) -> list[str]:
    """The process of a stage."""
    command = [sys.executable, "-m", "bench.gpu.worker", stage.name, str(records)]
    if arguments.dry_run:
        command.append("--dry-run")
    if arguments.wheels:
        command += ["--wheels", str(arguments.wheels.resolve())]
    return command


def main(arguments: list[str] | None = None) -> int:
    """Run the stages and print the tables; 1 if a stage did not end well."""
    options = parse(arguments)
    results = Results(
        options.output or default_output(dry_run=options.dry_run), dry_run=options.dry_run
    )

    def done(stage: Stage, outcome: Outcome) -> None:
        results.add(stage.name, outcome)
        took = f"{outcome.seconds:.0f} s of {outcome.limit:.0f} s"
        print(f"{stage.name}: {outcome.status}, {took}\n{outcome.tail}".rstrip(), flush=True)

    run_stages(
        select(options.only, with_wheels=options.wheels is not None),
        lambda stage, records: worker_command(options, stage, records),
        done,
        dry_run=options.dry_run,
    )
    print(f"\n{results.tables()}\n\nwrote {results.path}")
    return 0 if results.ok else 1


if __name__ == "__main__":
    sys.exit(main())
