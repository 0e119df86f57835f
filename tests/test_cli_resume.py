"""Runs of ``distill`` that are killed, interrupted and resumed, and the directory they write to."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer", reason="needs fastdistill[distill]")
pytest.importorskip("transformers", reason="needs fastdistill[distill]")

from cli_commands import assert_same_result, fail, invoke, python, succeed

from fastdistill.cli import checkpoint, training

pytest_plugins = ["cli_runs"]


KILLED_IN_THE_THIRD_SAVE = """
import os, signal, sys
from fastdistill.cli import app, checkpoint

saves, whole = 0, checkpoint.torch.save

def save(state, file):
    global saves
    saves += 1
    if saves < 3:
        return whole(state, file)
    file.write(b"half a checkpoint")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

checkpoint.torch.save = save
app(sys.argv[1:])
"""


def test_killed_run_ends_where_the_uninterrupted_run_ends(
    job: list[str], tmp_path: Path, finished: Path
) -> None:
    output = tmp_path / "run"
    arguments = [*job, "--output", str(output)]
    killed = python(KILLED_IN_THE_THIRD_SAVE, *arguments)
    assert killed.returncode == -signal.SIGKILL
    assert (output / "checkpoint.pt.tmp").read_bytes() == b"half a checkpoint"
    saved = torch.load(output / checkpoint.CHECKPOINT, weights_only=True)
    assert len(saved["training"]["losses"]) == 4
    succeed(*arguments, "--resume")
    assert_same_result(output, finished)
    assert not list(output.glob("checkpoint*"))


def test_run_killed_before_its_first_checkpoint_starts_again(
    job: list[str], tmp_path: Path, finished: Path
) -> None:
    (tmp_path / "checkpoint.pt.tmp").write_bytes(b"half a checkpoint")
    assert "no checkpoint" in fail(*job, "--output", tmp_path, "--resume")
    succeed(*job, "--output", tmp_path)
    assert_same_result(tmp_path, finished)


def test_ctrl_c_saves_and_says_how_to_resume(
    job: list[str], tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    arguments = [*job, "--output", str(output), "--checkpoint-every", "100"]
    whole_step = training.Training.step

    def interrupted_step(run: training.Training) -> float:
        if len(run.losses) == 4:
            signal.raise_signal(signal.SIGINT)
        return whole_step(run)

    monkeypatch.setattr(sys, "argv", ["fastdistill", *arguments])
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "step", interrupted_step)
        result = invoke(*arguments)
    assert result.exit_code == 130
    assert f"python -m fastdistill distill {' '.join(arguments[1:])} --resume" in result.stderr
    assert len(checkpoint.open_run(output, resume=True)["training"]["losses"]) == 5
    succeed(*arguments, "--resume")
    assert_same_result(output, finished)


def test_ctrl_c_before_the_first_step_leaves_nothing_to_resume(
    job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdistill.cli.run.load_teacher", interrupted)
    result = invoke(*job, "--output", tmp_path / "run")
    assert result.exit_code == 130
    assert "nothing to resume" in result.stderr


@pytest.fixture(scope="module")
def interrupted(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that stopped after its last checkpoint and before its student."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    output = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastdistill.cli.run.save_student", stop)
        assert invoke(*job, "--output", output).exit_code == 130
    return output


def state_of(path: Path) -> tuple[bytes, int]:
    """What a file holds and when it was written, whoever read it since."""
    return path.read_bytes(), path.stat().st_mtime_ns


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--lr", "0.5", "--lr is 0.5 here but 0.01 in the checkpoint"),
        ("--steps", "10", "--steps is 10 here but 9 in the checkpoint"),
        ("--seq-len", "16", "--block is 16 here but 32 in the checkpoint"),
        ("--loss", "torch", "--loss is torch here but fused in the checkpoint"),
        ("--text", __file__, "test_cli_resume.py"),
    ],
)
def test_resume_with_another_configuration_is_an_error(
    job: list[str], interrupted: Path, option: str, value: str, expected: str
) -> None:
    before = state_of(interrupted / checkpoint.CHECKPOINT)
    message = fail(*job, "--output", interrupted, "--resume", option, value)
    assert message.startswith("error: --resume: --")
    assert expected in message
    assert state_of(interrupted / checkpoint.CHECKPOINT) == before


def test_output_of_another_run_is_left_alone(
    job: list[str], interrupted: Path, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    expected = {
        interrupted: f"error: --output: {interrupted} holds a run: --resume it",
        finished: f"error: --output: {finished} holds a finished run",
        tmp_path: f"error: --output: {tmp_path} holds other files (notes.txt)",
    }
    for output, message in expected.items():
        before = {path: state_of(path) for path in output.iterdir()}
        assert fail(*job, "--output", output).startswith(message)
        assert {path: state_of(path) for path in output.iterdir()} == before


def test_nothing_to_resume(job: list[str], finished: Path, tmp_path: Path) -> None:
    for output, why in ((tmp_path / "new", "no checkpoint there"), (finished, "has finished")):
        message = fail(*job, "--output", output, "--resume")
        assert message.startswith(f"error: --resume: nothing to resume in {output}: ")
        assert why in message


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 not a zip file"])
def test_broken_checkpoint_is_an_error(job: list[str], tmp_path: Path, content: bytes) -> None:
    (tmp_path / checkpoint.CHECKPOINT).write_bytes(content)
    message = fail(*job, "--output", tmp_path, "--resume")
    assert message.startswith("error: --resume: cannot read the checkpoint")


def test_full_disk_keeps_the_last_checkpoint(
    job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter([checkpoint.torch.save])

    def save(*arguments: Any) -> None:
        if (whole := next(calls, None)) is None:
            raise OSError(28, "No space left on device")
        whole(*arguments)

    monkeypatch.setattr(checkpoint.torch, "save", save)
    message = fail(*job, "--output", tmp_path)
    assert message.startswith("error: cannot write the checkpoint")
    assert "No space left on device" in message
    state = checkpoint.open_run(tmp_path, resume=True)
    assert state is not None
    assert len(state["training"]["losses"]) == 2
