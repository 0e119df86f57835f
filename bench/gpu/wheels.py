"""Installs other packages from a folder of wheels; one that cannot be installed is named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .build import pip_install
from .stages import RIVALS
from .worker import Context


def _install(wheel: Path) -> str:
    """Why it cannot be installed, or nothing."""
    command = pip_install(RIVALS, "--quiet", "--no-compile", str(wheel))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="", end="", flush=True)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


def run(context: Context) -> None:
    """Each wheel on its own. In a dry run nothing is installed."""
    assert context.wheels is not None
    if not context.wheels.is_dir():
        raise SystemExit(f"{context.wheels} is no folder")
    if not context.dry_run:
        shutil.rmtree(RIVALS, ignore_errors=True)
    for wheel in sorted(context.wheels.glob("*.whl")):
        note = "not in a dry run" if context.dry_run else _install(wheel)
        context.emit("wheel", wheel=wheel.name, note=note)
