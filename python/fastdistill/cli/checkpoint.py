"""Checkpoints that are either there as a whole or not at all, and the run directory's rules."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from .errors import UserError

CHECKPOINT = "checkpoint.pt"
REPORT = "report.json"
_UNFINISHED = CHECKPOINT + ".tmp"


def open_run(output: Path, resume: bool) -> dict[str, Any] | None:
    """Prepare the directory of a run and return the checkpoint to resume from, if any.

    A directory that holds anything is never written to without ``resume``.
    """
    if resume:
        return _load(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in output.iterdir()} - {_UNFINISHED}
        if not names:
            (output / _UNFINISHED).touch()
    except OSError as error:
        raise UserError(f"--output: cannot write to {output}: {error.strerror}") from None
    if CHECKPOINT in names:
        raise UserError(f"--output: {output} holds a run: --resume it, or name another directory")
    if names:
        held = "a finished run" if REPORT in names else f"other files ({min(names)})"
        raise UserError(f"--output: {output} holds {held}: name another directory")
    return None


def _load(output: Path) -> dict[str, Any]:
    path = output / CHECKPOINT
    if not path.is_file():
        finished = (output / REPORT).is_file()
        why = "the run there has finished" if finished else "no checkpoint there"
        raise UserError(f"--resume: nothing to resume in {output}: {why}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"--resume: cannot read the checkpoint {path}: {reason}") from None
    return state


def save(output: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint beside the last one and put it in its place in one step.

    Whenever the process dies, the directory holds a whole checkpoint: the new one or the last one.
    """
    temporary = output / _UNFINISHED
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, output / CHECKPOINT)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write the checkpoint {output / CHECKPOINT}: {error}") from None


def write_report(output: Path, text: str) -> None:
    """Write ``report.json``, whole or not at all."""
    temporary = output / (REPORT + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, output / REPORT)


def remove(output: Path) -> None:
    """Remove the checkpoint of a run that has finished."""
    (output / CHECKPOINT).unlink(missing_ok=True)
    (output / _UNFINISHED).unlink(missing_ok=True)
