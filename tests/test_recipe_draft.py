"""The recipe ``draft``: its losses, its drafts, runs that are interrupted; a run on a real model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("typer", reason="needs fastdistill[distill]")
pytest.importorskip("transformers", reason="needs fastdistill[distill]")

from cli_commands import fail, quick_study
from rich.console import Console
from studies import arguments_of, assert_goes_on_to, found_by, interrupted, stopped

from fastdistill.cli import models
from fastdistill.cli.recipes import draft, draft_tables
from fastdistill.cli.recipes.draft_losses import LOSSES
from fastdistill.cli.recipes.speculative import speculate
from fastdistill.cli.recipes.study import Study

pytest_plugins = ["cli_runs"]

TINY_LOSSES = ("ForwardKL", "mixture")


def tiny(teacher: str, dtype: str) -> draft.Settings:
    return draft.Settings(
        teacher,
        dtype,
        depths=(2,),
        losses=TINY_LOSSES,
        measured_at=(2, 4),
        block=24,
        prompt=8,
        lr=0.01,
        held_out=4,
        prompts=2,
        new_tokens=6,
    )


@pytest.fixture
def setup(tiny_teacher: Path, tmp_path: Path) -> draft._Setup:
    study = Study(
        tiny("tiny", "float32"), tiny_teacher, tmp_path / "run", Console(quiet=True), resume=False
    )
    return draft._Setup(study)


# ---- losses --------------------------------------------------------------------------------------


def expected(log_p: Tensor, log_q: Tensor) -> dict[str, Tensor]:
    """The values of each row, written out."""
    p, q = log_p.exp(), log_q.exp()
    log_m, log_skewed = ((p + q) / 2).log(), (0.1 * p + 0.9 * q).log()
    forward = (p * (log_p - log_q)).sum(-1)
    overlap = torch.minimum(p, q).sum(-1)
    weight = torch.exp(-3 * overlap).detach()
    return {
        "ForwardKL": forward,
        "ReverseKL": (q * (log_q - log_p)).sum(-1),
        "JensenShannon": (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1) / 2,
        "SkewForwardKL": (p * (log_p - log_skewed)).sum(-1),
        "TotalVariation": 1 - overlap,
        "NegativeLogAcceptance": -overlap.log(),
        "mixture": weight * forward + (1 - weight) * (1 - overlap),
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_plain_torch(setup: draft._Setup, loss: str) -> None:
    scored = setup.scored["teacher"][:3]
    scored.text.counted[1, 12:] = False  # as if this one had ended
    student = models.prune_depth(setup.teacher, [0, 3]).eval()
    found = LOSSES[loss](student, scored, torch.float32)
    found.backward()
    gradients = {
        name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None
    }
    student.zero_grad()
    with torch.no_grad():
        log_p = setup.teacher(scored.text.ids).logits.double().log_softmax(-1)
    log_q = student(scored.text.ids).logits.double().log_softmax(-1)
    value = expected(log_p, log_q)[loss][scored.text.counted].mean()
    value.backward()
    assert found.item() == pytest.approx(value.item(), rel=1e-4)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


# ---- text and drafts -----------------------------------------------------------------------------


def test_both_texts_have_the_same_prompts_and_counted_positions(setup: draft._Setup) -> None:
    teacher, corpus = (setup.scored[name].text for name in ("teacher", "corpus"))
    assert torch.equal(corpus.ids, setup.train_ids)
    assert torch.equal(teacher.ids[:, :8], corpus.ids[:, :8])
    assert (teacher.ids[:, 8:] != corpus.ids[:, 8:]).float().mean() > 0.5
    # The last token of a prompt is asked for the first that follows; the last of all for none.
    assert corpus.counted[:, 7:-1].all()
    assert corpus.counted.sum() == len(corpus.ids) * (24 - 8)
    assert not (teacher.counted & ~corpus.counted).any()
    assert teacher.counted.sum() > 0.8 * corpus.counted.sum()


def test_no_text_is_trained_on_and_measured_on(setup: draft._Setup) -> None:
    held_out = setup.scored["held-out"].text.ids
    assert len(held_out) == 4
    assert len(setup.prompts) == 2
    for trained in (setup.train_ids, setup.scored["teacher"].text.ids):
        assert not (trained[:, None] == held_out).all(-1).any()
    assert not (held_out[:, None, :8] == setup.prompts).all(-1).any()
    assert not (setup.train_ids[:, None, :8] == setup.prompts).all(-1).any()


@pytest.mark.parametrize(
    ("depth", "of", "layers"),
    [
        (4, 30, [0, 1, 28, 29]),
        (12, 30, [*range(6), *range(24, 30)]),
        (3, 4, [0, 1, 3]),
        (1, 4, [0]),
    ],
)
def test_layers(setup: draft._Setup, depth: int, of: int, layers: list[int]) -> None:
    setup.teacher.config.num_hidden_layers = of
    assert setup.layers(depth) == layers


def test_only_layers_are_trained(setup: draft._Setup) -> None:
    student = models.prune_depth(setup.teacher, setup.layers(2))
    student.lm_head.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    setup.trained(draft._Arm(2, "teacher", "mixture"), student)
    after = student.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"model.embed_tokens.weight", "lm_head.weight"}


def test_each_step_takes_its_own_blocks(setup: draft._Setup) -> None:
    setup.settings = replace(setup.settings, lr=1e-12)  # one draft for all steps
    setup.teacher.config.attention_dropout = 0.0  # in the draft
    student = models.prune_depth(setup.teacher, [0, 3])
    found = setup.trained(draft._Arm(2, "corpus", "ForwardKL"), student)["losses"]
    text = setup.scored["corpus"]
    losses = [
        LOSSES["ForwardKL"](student, text[2 * step : 2 * (step + 1)], torch.float32).item()
        for step in range(4)
    ]
    assert found == pytest.approx(losses, rel=1e-5)
    assert len(set(losses)) == 4


def test_decoding_is_greedy_and_sampled(setup: draft._Setup) -> None:
    student = models.prune_depth(setup.teacher, [0, 3])
    found = setup.decoded(draft._Arm(2), student)
    names = {"greedy": False, "sampled": True}
    outcomes = {
        name: speculate(setup.teacher, student, setup.prompts, new_tokens=6, sample=sampled, seed=0)
        for name, sampled in names.items()
    }
    assert outcomes["greedy"].rejected != outcomes["sampled"].rejected
    for name, outcome in outcomes.items():
        assert found[name]["accepted"] == outcome.accepted
        assert found[name]["rejected"] == outcome.rejected


# ---- the study -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tiny_teacher: Path) -> list[str]:
    return arguments_of("draft", tiny_teacher)


@pytest.fixture(autouse=True)
def _tiny_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "quick", tiny)


@pytest.fixture(scope="module")
def found(study: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of that study when nothing interrupts it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft, "quick", tiny)
        return found_by(study, tmp_path_factory.mktemp("found") / "run")


def test_report(found: dict[str, Any]) -> None:
    assert found["recipe"] == "draft"
    assert found["layers"] == {"2": [0, 3]}
    hows = [(None, None), *((text, loss) for text in ("teacher", "corpus") for loss in TINY_LOSSES)]
    assert [(d["depth"], d["text"], d["loss"]) for d in found["drafts"]] == [
        (2, *how) for how in hows
    ]
    for each in found["drafts"]:
        tokens = [point["tokens"] for point in each["curve"]]
        if each["loss"] is None:
            assert tokens == [0]
        else:
            assert len(each["losses"]) == 4
            assert each["training_seconds"] > 0
        if each["text"] == "corpus":
            assert tokens == [steps * 2 * (24 - 8) for steps in (2, 4)]
        if each["text"] == "teacher":
            assert 0.8 * 2 * 2 * 16 < tokens[0] < tokens[1] <= 4 * 2 * 16
        for mode in ("greedy", "sampled"):
            assert each[mode]["tokens"] == 2 * 6
            assert sum(each[mode]["accepted"]) + sum(each[mode]["rejected"]) > 0
        assert each["teacher_tokens_per_second"] > 0
    rates = {(d["text"], d["loss"]): d["curve"][-1]["acceptance_rate"] for d in found["drafts"]}
    assert len(set(rates.values())) == len(rates)
    assert rates["teacher", "ForwardKL"] > rates[None, None]


def test_table_has_what_the_report_has(found: dict[str, Any]) -> None:
    lines = draft_tables.markdown(found).splitlines()
    rows = [line for line in lines if line.count("|") == 11][2:]
    assert len(rows) == len(found["drafts"])
    for each, row in zip(found["drafts"], rows, strict=True):
        assert row.startswith(f"| {each['depth']} | {each['text'] or ''} | ")
        assert f" | {each['curve'][-1]['acceptance_rate']:.3f} | " in row
        for mode in ("greedy", "sampled"):
            own = each[mode]
            assert f"| {own['acceptance']:.3f} ± {own['standard_error']:.3f} |" in row
            assert f"| {own['tokens_per_round']:.2f} |" in row
            assert f"| {own['tokens_per_second']:.1f} |" in row
    assert sum(line.count("|") == 6 for line in lines) == 2 + 1 + 2 * len(TINY_LOSSES)


def made_up(speed: float) -> dict[str, Any]:
    """Three drafts, of which the second is the best on paper and the third the fastest."""

    def each(loss: str | None, rate: float, accepted: tuple[int, int], faster: float) -> Any:
        decoded = {
            "accepted": accepted,
            "rejected": (10, 10),
            "tokens_per_round": 1.0,
            "tokens_per_second": speed * faster,
        }
        return {
            "depth": 4,
            "text": loss and "teacher",
            "loss": loss,
            "curve": [{"tokens": 0, "acceptance_rate": rate}],
            "greedy": decoded,
            "sampled": decoded,
            "teacher_tokens_per_second": 20.0 + rate,
        }

    drafts = [
        each(None, 0.1, (0, 0), 0.1),
        each("A", 0.4, (8, 12), 0.9),
        each("B", 0.3, (30, 30), 1.0),
    ]
    return {"drafts": drafts}


def test_sentences_name_the_winners() -> None:
    on_paper, greedy, sampled, speed = draft_tables.sentences(made_up(speed=10.0))
    assert on_paper.endswith("text of the teacher: 4 layers, A 0.400, B 0.300")
    for sentence in (greedy, sampled):
        assert sentence.endswith("together: B 0.750 ± 0.000, A 0.500 ± 0.050")
    assert speed.startswith(
        "Speculative decoding does not pay off here: the teacher alone makes 20.3"
    )
    assert speed.endswith(
        "(20.1 to 20.4 between the drafts), with the fastest draft (4 layers, B, greedy) 10.0"
    )


def test_a_draft_pays_off_where_the_teacher_was_never_as_fast() -> None:
    assert " pays off " in draft_tables.sentences(made_up(speed=20.5))[-1]
    assert " does not pay off " in draft_tables.sentences(made_up(speed=20.35))[-1]


@pytest.mark.parametrize(("trained", "at_step"), [(0, 2), (2, 1), (3, 3)])
def test_interrupted_study_finds_the_same(
    trained: int,
    at_step: int,
    study: list[str],
    tmp_path: Path,
    found: dict[str, Any],
) -> None:
    saved = interrupted(study, tmp_path / "run", trained, at_step)
    assert len(saved["training"]["state"]["losses"]) == at_step + 1
    assert_goes_on_to(found, study, tmp_path / "run")


def test_study_interrupted_in_decoding_finds_the_same(
    study: list[str], tmp_path: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(5))
    whole = draft.decode_alone

    def decode_alone(*arguments: Any, **options: Any) -> float:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(draft, "decode_alone", decode_alone)
        stopped(study, tmp_path / "run")
    assert_goes_on_to(found, study, tmp_path / "run")


def test_draft_as_deep_as_its_teacher_is_an_error(
    study: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft, "quick", draft.Settings)
    message = fail(*study, "--output", tmp_path / "run")
    assert message == "error: --teacher: a draft of 4 layers needs a teacher of more, got 4"


# ---- on a real model -----------------------------------------------------------------------------


@pytest.mark.slow
def test_distilled_drafts_beat_one_that_is_not(smollm2: Path, tmp_path: Path) -> None:
    study, printed = quick_study("draft.py", smollm2, tmp_path / "run")
    assert "4 layers, ForwardKL, text of the teacher: " in printed
    before, *trained = study["drafts"]
    assert before["loss"] is None
    assert [each["loss"] for each in trained] == ["ForwardKL", "JensenShannon"]
    (start,) = before["curve"]
    for each in trained:
        end = each["curve"][-1]
        assert end["acceptance_rate"] > max(0.05, 2 * start["acceptance_rate"])
        assert end["top1_agreement"] > 2 * start["top1_agreement"]
        assert each["losses"][-1] < 0.9 * each["losses"][0]
    assert trained[0]["curve"][-1]["forward_kl"] < 0.6 * start["forward_kl"]
