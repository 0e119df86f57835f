"""The commands, their help, exit codes and JSON; ``distill`` itself is tested in the other files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer", reason="needs fastdistill[distill]")
pytest.importorskip("transformers", reason="needs fastdistill[distill]")

from cli_commands import fail, invoke, python, report, succeed
from typer.main import get_command

import fastdistill as fd
from fastdistill import _show_config
from fastdistill.cli import app

pytest_plugins = ["cli_runs"]

ROOT = Path(__file__).parent.parent
COMMANDS = get_command(app).commands


# ---- help and exit codes -------------------------------------------------------------------------


def test_every_command_and_option_has_a_help() -> None:
    overview = succeed("--help").stdout
    for name, command in COMMANDS.items():
        assert command.help.partition("\n")[0] in overview, name
        assert [option.name for option in command.params if not option.help] == [], name


@pytest.mark.parametrize("command", ["info", "distill"])
def test_help_shows_usage_and_options(command: str) -> None:
    shown = succeed(command, "--help").stdout
    assert f" {command} [OPTIONS]" in shown.partition("\n")[0]
    assert "--json" in shown


@pytest.mark.parametrize(
    "arguments", [(), ("train",), ("--jsn",), ("info", "--jsn"), ("info", "x")]
)
def test_wrong_use_ends_with_2(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (RuntimeError, 1)])
def test_other_ends_have_other_codes(
    error: type[BaseException], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show_config() -> None:
        raise error

    monkeypatch.setattr(fd, "show_config", show_config)
    assert invoke("info").exit_code == code


# ---- info ----------------------------------------------------------------------------------------


def test_info_prints_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    fd.show_config()
    assert succeed("info").stdout == capsys.readouterr().out


def test_info_prints_the_same_facts_as_json() -> None:
    facts = json.loads(succeed("info", "--json").stdout)
    assert facts == _show_config.config()
    assert facts["fastdistill"] == fd.__version__
    assert facts["cpu_instruction_set"] == fd._C.current_isa()
    assert facts["threads"] == torch.get_num_threads()
    shown = succeed("info").stdout
    for name, fact in facts.items():
        for part in fact if isinstance(fact, list) else [fact or "no CUDA backend"]:
            assert str(part) in shown, name


# ---- distill -------------------------------------------------------------------------------------


def test_distill_prints_its_report_alone_as_json(job: list[str], tmp_path: Path) -> None:
    result = succeed(*job, "--output", tmp_path / "run", "--json")
    assert json.loads(result.stdout) == report(tmp_path / "run")
    for shown in ("step 9/9 loss", "acceptance rate", f"student saved in {tmp_path / 'run'}"):
        assert shown in result.stderr.replace("\n", "")


def test_distill_prints_no_json_where_it_fails(job: list[str], tmp_path: Path) -> None:
    result = invoke(*job, "--output", tmp_path / "run", "--json", "--divergence", "kl")
    assert result.exit_code == 2
    assert result.stdout == ""


# ---- bench ---------------------------------------------------------------------------------------


def test_bench_is_the_suite_of_the_checkout() -> None:
    command = [sys.executable, "-m", "fastdistill", "bench", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.startswith("usage: python -m bench "), result.stderr


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have taken the place of this process."""
    commands: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, command: commands.append(command))
    return commands


def test_bench_passes_all_arguments_on(
    executed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    arguments = ["speed", "--quick", "--only", "top_k", "--output", "--help", "-x"]
    succeed("bench", *arguments)
    assert executed == [[sys.executable, "-m", "bench", *arguments]]


@pytest.mark.parametrize("argument", ["--quick", "--help"])
def test_bench_without_a_checkout_says_where_it_is(
    argument: str,
    executed: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__main__.py").touch()
    monkeypatch.chdir(tmp_path)
    message = fail("bench", argument)
    assert message.startswith("error: the benchmark suite comes with the repository")
    assert executed == []


# ---- without the command line --------------------------------------------------------------------


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_command_line_without_its_packages(package: str) -> None:
    result = python(
        f"import runpy, sys; sys.modules[{package!r}] = None;"
        "runpy.run_module('fastdistill', run_name='__main__')"
    )
    assert result.returncode == 2
    expected = f"error: the command line needs the package {package}: "
    assert result.stderr == expected + "pip install 'fastdistill[distill]'\n"


def test_import_of_the_package_leaves_the_command_line_out() -> None:
    code = "import sys, fastdistill; print({'transformers', 'typer', 'rich'} & {*sys.modules})"
    assert python(code).stdout == "set()\n"
