"""The recipe ``on-policy``: who writes what, what counts, runs that are interrupted; a real run."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
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
from transformers import LlamaForCausalLM

from fastdistill import reference
from fastdistill.cli.recipes import on_policy, on_policy_tables
from fastdistill.cli.recipes.study import Study
from fastdistill.cli.recipes.text import Text, sample

pytest_plugins = ["cli_runs"]

WAYS = (("student", "reverse_kl"), ("corpus", "forward_kl"), ("teacher", "jensen_shannon"))


def tiny(teacher: str, dtype: str) -> on_policy.Settings:
    return on_policy.Settings(
        teacher,
        dtype,
        share=0.5,
        block=16,
        prompt=6,
        batch=4,
        warmup_steps=3,
        warmup_lr=0.01,
        steps=3,
        lr=0.01,
        held_out=6,
        ways=WAYS,
    )


@pytest.fixture
def students(tiny_teacher: Path, tmp_path: Path) -> on_policy._Students:
    study = Study(
        tiny("tiny", "float32"), tiny_teacher, tmp_path / "run", Console(quiet=True), resume=False
    )
    students = on_policy._Students(study)
    students.teacher.config.attention_dropout = 0.0  # in the students
    return students


# ---- who writes what -----------------------------------------------------------------------------


def test_all_writers_continue_the_same_prompts(students: on_policy._Students) -> None:
    prompted, chosen = students.prompted, students.settings
    student = students.cut_out()
    of_ways = torch.cat([prompted.blocks(chosen.warmup_steps + i) for i in range(chosen.steps)])
    texts = {writer: prompted.training(writer).scored.text for writer in ("corpus", "teacher")}
    own = [prompted.by_student(student, step) for step in range(chosen.steps)]
    texts["student"] = Text(
        torch.cat([text.ids for text in own]), torch.cat([text.counted for text in own])
    )
    assert torch.equal(texts["corpus"].ids, of_ways)
    for writer, text in texts.items():
        assert torch.equal(text.ids[:, :6], of_ways[:, :6]), writer
        # The last given token is asked for the first one that is sampled.
        assert not text.counted[:, :5].any(), writer
        assert text.counted[:, 5:-1].all(), writer
        assert not text.counted[:, -1].any(), writer
    for writer, other in (("student", "teacher"), ("student", "corpus"), ("teacher", "corpus")):
        assert (texts[writer].ids[:, 6:] != texts[other].ids[:, 6:]).float().mean() > 0.5


def test_no_text_ends_early(students: on_policy._Students) -> None:
    end = students.teacher.config.eos_token_id
    blocks = torch.arange(64 * 16).view(64, 16) % 200 + 10
    free = sample(students.teacher, blocks[:, :6], 16, seed=0)
    assert (free.ids[:, 6:] == end).any()
    whole = students.prompted._sampled(students.teacher, blocks, seed=0)
    assert not (whole.ids == end).any()
    assert whole.counted[:, 5:-1].all()


def test_no_text_is_trained_and_judged_on(students: on_policy._Students) -> None:
    held_out = students.prompted.held_out["corpus"].text.ids
    steps = students.settings.warmup_steps + students.settings.steps
    trained = torch.cat([students.prompted.blocks(step) for step in range(steps)])
    assert len(held_out) == 6
    assert not (trained[:, None] == held_out).all(-1).any()


def test_equal_prompts_are_not_always_continued_alike(
    students: on_policy._Students, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompted, student = students.prompted, students.cut_out()
    always_the_same = prompted.blocks(0)
    monkeypatch.setattr(prompted, "blocks", lambda step: always_the_same)
    monkeypatch.setattr("fastdistill.cli.recipes.prompted.BLOCKS_PER_SAMPLING", 4)
    own = [prompted.by_student(student, step).ids for step in range(2)]
    others = prompted.training("teacher").scored.text.ids.split(4)
    for one, another in (own, others[:2]):
        assert torch.equal(one[:, :6], another[:, :6])
        assert not torch.equal(one, another)


def test_own_text_is_that_of_the_weights_and_the_step(students: on_policy._Students) -> None:
    student = students.cut_out()
    text = students.prompted.by_student(student, 0)
    assert torch.equal(students.prompted.by_student(student, 0).ids, text.ids)
    with torch.no_grad():
        student.model.layers[0].mlp.down_proj.weight.mul_(4)
    assert not torch.equal(students.prompted.by_student(student, 0).ids, text.ids)


# ---- what is computed ----------------------------------------------------------------------------


def logits(model: LlamaForCausalLM, text: Text) -> Tensor:
    with torch.no_grad():
        return model.eval()(text.ids).logits.double()


@pytest.mark.parametrize("way", on_policy.Settings.ways, ids="-".join)
def test_losses_are_those_of_plain_torch(
    students: on_policy._Students, way: tuple[str, str]
) -> None:
    writer, divergence = way
    students.settings = replace(students.settings, lr=1e-12)  # one student for all steps
    weights = students.warm_up()
    student = students.cut_out(weights)
    losses = []
    for step in range(3):
        if writer == "student":
            text = students.prompted.by_student(student, step)
        else:
            text = students.prompted.training(writer).scored.text[4 * step : 4 * (step + 1)]
        both = (logits(model, text) for model in (student, students.teacher))
        loss = reference.distillation_loss(*both, divergence=divergence, mask=text.counted)
        losses.append(loss.item())
    found = students.gone_on(weights, "a way", writer, divergence)
    assert found["losses"] == pytest.approx(losses, rel=1e-4)


def test_later_text_is_that_of_the_trained_student(students: on_policy._Students) -> None:
    seen = []
    whole = students.prompted.by_student

    def by_student(student: LlamaForCausalLM, step: int) -> Text:
        seen.append((student.state_dict()["model.layers.0.mlp.up_proj.weight"].clone(), step))
        return whole(student, step)

    students.prompted.by_student = by_student  # type: ignore[method-assign]
    students.gone_on({}, "a way", "student", "reverse_kl")
    assert [step for _, step in seen] == [0, 1, 2]
    assert all(not torch.equal(a[0], b[0]) for a, b in pairwise(seen))


def test_quality_is_that_of_plain_torch(students: on_policy._Students) -> None:
    student = students.cut_out()
    scored = students.prompted.held_out_by_student(student)
    counted = scored.text.counted
    counted[1, 8:] = counted[4, 12:] = False  # as if these had ended
    quality = on_policy._quality(student.eval(), scored, torch.float32)
    log_p, log_q = (
        logits(model, scored.text).log_softmax(-1) for model in (students.teacher, student)
    )
    p, q = log_p.exp(), log_q.exp()
    rows = {
        "forward_kl": (p * (log_p - log_q)).sum(-1),
        "reverse_kl": (q * (log_q - log_p)).sum(-1),
        "acceptance_rate": torch.minimum(p, q).sum(-1),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).double(),
        "student_entropy": -(q * log_q).sum(-1),
        "teacher_entropy": -(p * log_p).sum(-1),
    }
    expected = {name: row[counted].mean().item() for name, row in rows.items()}
    kls, count = (rows["reverse_kl"] * counted).sum(1), counted.sum(1)
    # The jackknife: each block is left out in turn.
    left_out = (kls.sum() - kls) / (count.sum() - count)
    deviations = left_out - left_out.mean()
    expected["reverse_kl_error"] = ((deviations**2).sum() * 5 / 6).sqrt().item()
    error = quality.pop("reverse_kl_error")
    assert error == pytest.approx(expected.pop("reverse_kl_error"), rel=0.1)
    assert quality == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("depth", "share", "kept"),
    [
        (30, 0.27, [0, 1, 2, 3, 26, 27, 28, 29]),
        (30, 0.1, [0, 1, 29]),
        (4, 0.1, [0, 3]),
        (1, 0.5, [0]),
    ],
)
def test_kept_layers(depth: int, share: float, kept: list[int]) -> None:
    assert on_policy._kept(depth, share) == kept


def test_only_the_layers_are_trained(students: on_policy._Students) -> None:
    before = students.cut_out().state_dict()
    warm = students.warm_up()
    assert {name.split(".")[1] for name in warm} == {"layers", "norm"}
    after = students.cut_out(warm).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(warm)


# ---- the study -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tiny_teacher: Path) -> list[str]:
    return arguments_of("on-policy", tiny_teacher)


@pytest.fixture(autouse=True)
def _tiny_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_policy, "quick", tiny)


@pytest.fixture(scope="module")
def found(study: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of that study when nothing interrupts it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_policy, "quick", tiny)
        return found_by(study, tmp_path_factory.mktemp("found") / "run")


def test_report(found: dict[str, Any]) -> None:
    assert found["recipe"] == "on-policy"
    assert found["settings"]["ways"] == [list(way) for way in WAYS]
    assert found["layers"] == [0, 3]
    assert [(way["writer"], way["divergence"]) for way in found["ways"]] == list(WAYS)
    start = found["start"]["held_out"]
    assert start != found["undistilled"]["held_out"]
    for way in found["ways"]:
        assert len(way["losses"]) == 3
        assert way["tokens"] == 3 * 4 * (16 - 6)
        assert set(way["held_out"]) == {"corpus", "teacher", "student"}
        assert all(way["held_out"][writer] != start[writer] for writer in start)
        assert way["seconds"]["scoring"] > 0
        assert way["seconds"]["training"] > 0
    of_student, of_corpus, of_teacher = found["ways"]
    assert of_corpus["seconds"]["sampling"] == 0
    assert of_student["seconds"]["sampling"] > of_student["seconds"]["scoring"]
    assert of_teacher["seconds"]["sampling"] > 0


def test_tables(found: dict[str, Any]) -> None:
    tables = [table.splitlines() for table in on_policy_tables.markdown(found).split("\n\n")]
    for lines, last in zip(tables, ((), (on_policy_tables.TEACHER,)), strict=True):
        assert len({line.count("|") for line in lines}) == 1
        labels = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
        ways = [f"{divergence} on text of the {writer}" for writer, divergence in WAYS]
        assert labels == [on_policy_tables.NOT_DISTILLED, on_policy_tables.WARM_UP, *ways, *last]
    kls, texts = (lines[4 : 4 + len(WAYS)] for lines in tables)
    for way, kl, text in zip(found["ways"], kls, texts, strict=True):
        own = way["held_out"]["student"]
        assert f"| {way['held_out']['corpus']['forward_kl']:.3f} |" in kl
        assert f"| {way['held_out']['teacher']['forward_kl']:.3f} |" in kl
        assert f"| {own['reverse_kl']:.3f} ± {own['reverse_kl_error']:.3f} |" in kl
        assert f"| {own['student_entropy']:.3f} |" in text
        assert f"| {own['student_entropy'] + own['reverse_kl']:.3f} | {way['tokens']} |" in text


TRAININGS = ("warm-up", *(f"{divergence} on text of the {writer}" for writer, divergence in WAYS))


@pytest.mark.parametrize("name", TRAININGS)
def test_interrupted_study_finds_the_same(
    name: str,
    study: list[str],
    tmp_path: Path,
    found: dict[str, Any],
) -> None:
    before = TRAININGS[: TRAININGS.index(name)]
    saved = interrupted(study, tmp_path / "run", trained=len(before), at_step=1)
    assert saved["training"]["name"] == name
    assert len(saved["training"]["state"]["losses"]) == 2
    assert set(saved["found"]) & set(TRAININGS) == set(before)
    assert_goes_on_to(found, study, tmp_path / "run")


def test_study_interrupted_while_the_teacher_samples_finds_the_same(
    study: list[str], tmp_path: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = on_policy.Prompted._by_teacher

    def by_teacher(prompted: Any, blocks: Tensor, seed: int) -> dict[str, Any]:
        if len(blocks) == 12:
            raise KeyboardInterrupt
        return whole(prompted, blocks, seed)

    with monkeypatch.context() as patch:
        patch.setattr(on_policy.Prompted, "_by_teacher", by_teacher)
        stopped(study, tmp_path / "run")
    assert_goes_on_to(found, study, tmp_path / "run")


def test_resume_in_another_dtype_is_an_error(study: list[str], tmp_path: Path) -> None:
    interrupted(study, tmp_path / "run", trained=0, at_step=1)
    arguments = [*study, "--output", str(tmp_path / "run")]
    message = fail(*arguments, "--resume", "--dtype", "bfloat16")
    assert "--dtype is bfloat16 here but float32 in the checkpoint" in message
    full = [argument for argument in arguments if argument != "--quick"]
    message = fail(*full, "--resume")
    assert "--resume: share, which --recipe and --quick choose, is 0.3 here but 0.5" in message


# ---- on a real model -----------------------------------------------------------------------------


@pytest.mark.slow
def test_distillation_beats_what_it_is_compared_with(smollm2: Path, tmp_path: Path) -> None:
    study, printed = quick_study("on_policy.py", smollm2, tmp_path / "run")
    assert "reverse_kl on text of the student: " in printed
    undistilled, start = study["undistilled"]["held_out"], study["start"]["held_out"]
    ways = {(way["writer"], way["divergence"]): way["held_out"] for way in study["ways"]}
    for held_out in (start, *ways.values()):
        for writer, quality in held_out.items():
            assert quality["forward_kl"] < 0.5 * undistilled[writer]["forward_kl"], writer
            assert quality["acceptance_rate"] > 2 * undistilled[writer]["acceptance_rate"], writer
    of_corpus, of_student = ways["corpus", "forward_kl"], ways["student", "reverse_kl"]
    assert of_corpus["corpus"]["forward_kl"] < start["corpus"]["forward_kl"]
    for own in (start["student"], of_corpus["student"]):
        assert of_student["student"]["reverse_kl"] < 0.95 * own["reverse_kl"]
        assert of_student["student"]["acceptance_rate"] > own["acceptance_rate"]
