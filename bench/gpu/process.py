"""A stage in a process of its own: it may fail or hang, and the others go on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .stages import RIVALS, ROOT, SITE, Stage

Record = dict[str, Any]
Command = Callable[[Stage, Path], list[str]]
"""The command of a stage that writes its records, one JSON object a line, to a file."""

_TAIL_CHARACTERS = 4000


@dataclass
class Outcome:
    """What became of a stage."""

    status: str  # "ok", "failed" or "timed out"
    seconds: float
    limit: float  # in seconds, with what the stages before left over
    records: list[Record] = field(default_factory=list)
    tail: str = ""  # the end of its output, where it did not end well


def environment(*folders: Path) -> dict[str, str]:
    """The environment of a process that imports from these folders before any other place."""
    paths = [str(folder) for folder in folders if folder.is_dir()]
    given = os.environ.get("PYTHONPATH")
    joined = os.pathsep.join([*paths, *([given] if given else [])])
    return {**os.environ, "PYTHONPATH": joined, "PYTHONUNBUFFERED": "1"}


def stage_environment(*, dry_run: bool) -> dict[str, str]:
    """Imports come from the build for the GPU, then from the wheels; a dry run has neither."""
    return environment() if dry_run else environment(SITE, RIVALS)


def _wait(command: list[str], environ: Mapping[str, str], limit: float, log: Path) -> int | None:
    """The exit status, or None after ``limit`` seconds; nothing of its group is left running."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
            env=environ, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read_records(path: Path) -> list[Record]:
    """All whole lines, with six digits; the last line may have been cut."""
    if not path.exists():
        return []
    return [
        json.loads(line, parse_float=lambda digits: float(f"{float(digits):.6g}"))
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]


def run_stage(command: list[str], limit: float, environ: Mapping[str, str], work: Path) -> Outcome:
    """Run a command that writes its records to the file ``records`` in the folder ``work``."""
    log, start = work / "log", time.monotonic()
    status = _wait(command, environ, limit, log)
    outcome = Outcome("ok", time.monotonic() - start, limit, _read_records(work / "records"))
    if status != 0:
        outcome.status = "timed out" if status is None else "failed"
        outcome.tail = log.read_text(errors="replace")[-_TAIL_CHARACTERS:]
    return outcome


def run_stages(
    stages: Iterable[Stage],
    command: Command,
    done: Callable[[Stage, Outcome], None],
    *,
    dry_run: bool = False,
) -> None:
    """Run all stages, whatever becomes of each, and tell ``done`` after each of them."""
    left_over = 0.0
    for stage in stages:
        limit = stage.limit + left_over
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            outcome = run_stage(
                command(stage, work / "records"), limit, stage_environment(dry_run=dry_run), work
            )
        left_over = max(0.0, limit - outcome.seconds)
        done(stage, outcome)
