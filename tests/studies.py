"""Studies of the recipes on a tiny model: run to their end, interrupted, gone on with."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_commands import invoke, report, succeed

from fastdistill.cli import checkpoint, training


def arguments_of(recipe: str, teacher: Path) -> list[str]:
    """Of a study that takes seconds, where the recipe's ``quick`` has tiny settings."""
    arguments = ["distill", "--recipe", recipe, "--quick", "--teacher", str(teacher)]
    return [*arguments, "--dtype", "float32"]


def found_by(study: list[str], output: Path) -> dict[str, Any]:
    """The report of a study that nothing interrupts, which is all that it leaves."""
    succeed(*study, "--output", output)
    assert [path.name for path in output.iterdir()] == ["report.json"]
    return report(output)


def _interrupting(trained: int, at_step: int) -> Callable[[training.Training], float]:
    """A ``Training.step`` that is interrupted in the training after ``trained`` others."""
    whole, begun = training.Training.step, []

    def step(run: training.Training) -> float:
        if run not in begun:
            begun.append(run)
        if len(begun) == trained + 1 and len(run.losses) == at_step:
            signal.raise_signal(signal.SIGINT)
        return whole(run)

    return step


def interrupted(study: list[str], output: Path, trained: int, at_step: int) -> dict[str, Any]:
    """What is saved of a study that is interrupted in the training after ``trained`` others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "step", _interrupting(trained, at_step))
        return stopped(study, output)


def stopped(study: list[str], output: Path) -> dict[str, Any]:
    """What is saved of a study that something interrupts."""
    result = invoke(*study, "--output", output)
    assert result.exit_code == 130, result.output
    saved = checkpoint.open_run(output, resume=True)
    assert saved is not None
    return saved


def assert_goes_on_to(found: dict[str, Any], study: list[str], output: Path) -> None:
    """What was interrupted finds the same in the end."""
    succeed(*study, "--output", output, "--resume")
    assert _without_times(report(output)) == _without_times(found)


def _without_times(found: Any) -> Any:
    if isinstance(found, dict):
        return {k: _without_times(value) for k, value in found.items() if "second" not in k}
    return [_without_times(value) for value in found] if isinstance(found, list) else found
