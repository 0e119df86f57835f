"""Commands of the command line, run here or in a process of their own, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner, Result

from fastdistill.cli import app

EXAMPLES = Path(__file__).parents[1] / "examples"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fail(*arguments: object) -> str:
    """The last line of the error output of a command that the user got wrong."""
    result = invoke(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.stderr.strip().splitlines()[-1]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process of its own, with as many threads as this one."""
    return _python("-c", code, *arguments)


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    # More threads than cores would wait for each other, and not in their sleep.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


def quick_study(example: str, teacher: Path, output: Path) -> tuple[dict[str, Any], str]:
    """The report and the output of an example's study on a real model, which prints no error."""
    options = ["--quick", "--teacher", str(teacher), "--output", str(output)]
    run = _python(str(EXAMPLES / example), *options)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return report(output), run.stdout


def report(output: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((output / "report.json").read_text())
    return loaded


def assert_same_result(output: Path, expected: Path) -> None:
    assert report(output)["losses"] == report(expected)["losses"]
    assert report(output)["before"] == report(expected)["before"]
    assert report(output)["after"] == report(expected)["after"]
    weights = "model.safetensors"
    assert (output / weights).read_bytes() == (expected / weights).read_bytes()
