"""Runs the tests that need a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from .stages import ROOT
from .worker import Context

_NONE_COLLECTED = 5  # exit status of pytest
_MOST_PROCESSES = 12


def run(context: Context) -> None:
    """Fails as pytest does; a dry run only looks into the files that are all about CUDA."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(_MOST_PROCESSES, os.cpu_count() or 1))]
    if context.dry_run:
        files = sorted(str(path) for path in (ROOT / "tests").glob("test_cuda*.py"))
        command += ["--collect-only", *files]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    context.emit("tests", summary=last)
    status = process.wait()
    if status and not (context.dry_run and status == _NONE_COLLECTED):
        raise SystemExit(status)
