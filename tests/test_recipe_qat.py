"""The recipe ``qat``: on a tiny model how it is put together, on a real one what it finds."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer", reason="needs fastdistill[distill]")
pytest.importorskip("transformers", reason="needs fastdistill[distill]")
pytest.importorskip("torchao", reason="needs fastdistill[qat]")

from cli_commands import fail, quick_study
from rich.console import Console
from studies import arguments_of, assert_goes_on_to, found_by, interrupted, stopped
from transformers import LlamaConfig, LlamaForCausalLM

from fastdistill.cli import models, training
from fastdistill.cli.corpus import read_text, tokenize
from fastdistill.cli.recipes import qat, qat_tables, quantise, small_kl
from fastdistill.cli.recipes.study import Study

pytest_plugins = ["cli_runs"]

TRAINED = ("hard_labels", "distilled")


# ---- int4 weights --------------------------------------------------------------------------------


@pytest.fixture
def model(tiny_teacher: Path) -> LlamaForCausalLM:
    teacher, _ = models.load_teacher(tiny_teacher, torch.float32)
    return models.prune_depth(teacher, range(4)).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.arange(64).view(2, 32)


def matrices(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` in int4, symmetric, with a scale per 32 weights of a row."""
    groups = weight.detach().unflatten(1, (-1, 32))
    low, high = (
        groups.amin(-1, keepdim=True).clamp(max=0),
        groups.amax(-1, keepdim=True).clamp(min=0),
    )
    scale = torch.maximum(-low, high) / 7.5
    # The largest weight is at 7.5 scales, where it is for the last bit to decide: so as torchao has it.
    return ((groups * (1 / scale)).round().clamp(-8, 7) * scale).flatten(1)


def test_all_matrices_but_the_head_are_int4_from_preparation_on(
    model: LlamaForCausalLM, ids: torch.Tensor
) -> None:
    expected = {name: rounded(weight) for name, weight in matrices(model).items()}
    assert len(expected) == 4 * 7
    head = model.lm_head.weight.clone()
    plain = models.hidden_states(model, ids)
    reference = copy.deepcopy(model)
    for name, weight in matrices(reference).items():
        weight.data.copy_(expected[name])
    wanted = models.hidden_states(reference, ids)
    quantise.prepare(model)
    prepared = models.hidden_states(model, ids)
    quantise.convert(model)
    converted = models.hidden_states(model, ids)
    for name, weight in matrices(model).items():
        assert weight.qdata.min() >= -8, name
        assert weight.qdata.max() <= 7, name
        assert not weight.zero_point.any(), name
        torch.testing.assert_close(weight.dequantize(), expected[name])
    quantise.dequantise(model)
    assert all(type(weight) is torch.nn.Parameter for weight in matrices(model).values())
    torch.testing.assert_close(prepared, wanted)
    assert (plain - prepared).abs().max() > 0.01
    assert torch.equal(converted, prepared)
    assert torch.equal(models.hidden_states(model, ids), prepared)
    assert torch.equal(model.lm_head.weight, head)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_preparation_lets_gradients_through(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    quantise.prepare(model)
    models.hidden_states(model, ids).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in matrices(model).values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_size_counts_every_byte_once(model: LlamaForCausalLM, precision: torch.dtype) -> None:
    width = precision.itemsize
    quantised = sum(weight.numel() for weight in matrices(model).values())
    others = sum(parameter.numel() for parameter in model.parameters()) - quantised
    plain = quantise.size(model.to(precision))
    assert plain.packed == plain.in_memory == (quantised + others) * width
    quantise.prepare(model)
    quantise.convert(model)
    converted = quantise.size(model)
    scales = quantised // 32
    assert converted.packed == quantised // 2 + scales * width + others * width
    assert converted.in_memory == quantised + scales * (width + 1) + others * width


def test_matrices_that_cannot_be_cut_into_groups_are_an_error(
    tmp_path: Path, tiny_teacher: Path
) -> None:
    teacher, tokenizer = models.load_teacher(tiny_teacher, torch.float32)
    config = LlamaConfig(**{**teacher.config.to_dict(), "intermediate_size": 48})
    models.save_student(LlamaForCausalLM(config), tokenizer, tmp_path / "teacher")
    arguments = ["--teacher", tmp_path / "teacher", "--output", tmp_path / "run"]
    message = fail("distill", "--recipe", "qat", *arguments)
    assert "model.layers.0.mlp.down_proj must be a multiple of 32" in message
    assert message.endswith("got 48")


def test_without_torchao_nothing_is_begun(
    tmp_path: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torchao" else found(name)
    )
    output = tmp_path / "run"
    message = fail("distill", "--recipe", "qat", "--teacher", tiny_teacher, "--output", output)
    assert message.endswith("needs the package torchao: pip install 'fastdistill[qat]'")
    assert not output.exists()


# ---- small KLs -----------------------------------------------------------------------------------


def assert_right_where_rounded_logits_are_not(rows: list[dict[str, float]]) -> None:
    for row in rows:
        assert row["float32"] == pytest.approx(row["float32_reference"], rel=1e-3)
        assert row["bfloat16"] == pytest.approx(row["bfloat16_reference"], rel=1e-3)
    last = rows[-1]
    assert last["rounded_logits"] > 2 * last["bfloat16_reference"]
    # Rounded log-probabilities err in either direction, by chance only a little.
    ours, rounded = (
        abs(last[name] - last["bfloat16_reference"])
        for name in ("bfloat16", "rounded_log_probabilities")
    )
    assert rounded > 10 * ours


def test_small_kls_are_right(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(4)  # tied: as confident as a model that was trained
    quantised = copy.deepcopy(model)
    quantise.prepare(quantised)
    quantise.convert(quantised)
    quantise.dequantise(quantised)
    before = copy.deepcopy(model.state_dict())
    rows = small_kl.small_kls(model, quantised, ids, (1.0, 0.1, 0.01))
    assert [row.scale for row in rows] == [1.0, 0.1, 0.01]
    # A KL near its minimum goes with the square of the distance.
    assert rows[1].float32_reference == pytest.approx(rows[0].float32_reference / 100, rel=0.5)
    assert rows[2].float32_reference == pytest.approx(rows[1].float32_reference / 100, rel=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    p, q = (
        torch.log_softmax(models.hidden_states(m, ids) @ m.lm_head.weight.T, -1).double()
        for m in (model, quantised)
    )
    expected = (p.exp() * (p - q)).sum(-1).mean().item()
    assert rows[0].float32 == pytest.approx(expected, rel=1e-4)
    assert_right_where_rounded_logits_are_not([vars(row) for row in rows])


# ---- the study -----------------------------------------------------------------------------------


def tiny(teacher: str, dtype: str) -> qat.Settings:
    return qat.Settings(
        teacher,
        dtype,
        steps=4,
        batch=2,
        block=32,
        hard_lr=1e-2,
        distilled_lr=1e-2,
        held_out=4,
        prompts=3,
        prompt=8,
        new_tokens=8,
        checked=1,
    )


@pytest.fixture(scope="module")
def study(tiny_teacher: Path) -> list[str]:
    return arguments_of("qat", tiny_teacher)


@pytest.fixture(autouse=True)
def _tiny_settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(qat, "quick", tiny)


@pytest.fixture(scope="module")
def found(study: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of that study when nothing interrupts it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qat, "quick", tiny)
        return found_by(study, tmp_path_factory.mktemp("found") / "run")


def test_report(found: dict[str, Any]) -> None:
    assert found["recipe"] == "qat"
    assert found["settings"]["steps"] == 4
    students = found["students"]
    assert set(students) == {"post_training", *TRAINED}
    start = students["post_training"]
    for name, student in students.items():
        assert student["converted_kl"] == student["prepared_kl"] > 0, name
        assert 0 < student["acceptance_rate"] < 1, name
        assert 0 < student["speculation"]["acceptance"] < 1, name
        assert student["packed_bytes"] == start["packed_bytes"] < found["original"]["bytes"], name
        assert student["in_memory_bytes"] > student["packed_bytes"], name
    for name in TRAINED:
        assert len(students[name]["losses"]) == 4, name
        assert students[name]["forward_kl"] != start["forward_kl"], name
    assert students["distilled"]["losses"] != students["hard_labels"]["losses"]
    assert [row["scale"] for row in students["distilled"]["small_kl"]] == [1.0, 0.1, 0.01]


def test_quality_is_that_of_plain_torch(tiny_teacher: Path, ids: torch.Tensor) -> None:
    teacher, _ = models.load_teacher(tiny_teacher, torch.float32)
    student = models.prune_depth(teacher, [0, 3])
    quality = qat._quality(student, qat.score(teacher, qat.Text.whole(ids)), torch.float32)
    with torch.no_grad():
        log_p, log_q = (m.eval()(ids).logits.log_softmax(-1)[:, :-1] for m in (teacher, student))
    p, q = log_p.exp(), log_q.exp()
    nll = -log_q.gather(-1, ids[:, 1:, None]).mean()
    expected = {
        "forward_kl": (p * (log_p - log_q)).sum(-1).mean(),
        "reverse_kl": (q * (log_q - log_p)).sum(-1).mean(),
        "acceptance_rate": torch.minimum(p, q).sum(-1).mean(),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).double().mean(),
        "perplexity": nll.exp(),
    }
    assert quality == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-4)


def test_the_losses_are_those_of_plain_torch(tiny_teacher: Path, ids: torch.Tensor) -> None:
    teacher, _ = models.load_teacher(tiny_teacher, torch.float32)
    student = models.prune_depth(teacher, [0, 3]).eval()
    scored = qat.score(teacher, qat.Text.whole(ids))
    log_p, log_q = (model(ids).logits.log_softmax(-1) for model in (teacher, student))
    soft = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    hard = -log_q[:, :-1].gather(-1, ids[:, 1:, None]).mean()
    for loss_of, expected in ((qat._soft_loss, soft), (qat._hard_loss, hard)):
        loss = loss_of(student, scored, torch.float32)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


def test_each_step_has_its_own_blocks(tiny_teacher: Path, tmp_path: Path) -> None:
    settings = tiny(str(tiny_teacher), "float32")
    study = Study(settings, tiny_teacher, tmp_path / "run", Console(quiet=True), resume=False)
    setup = qat._Setup.load(study)
    untrained = setup.prepared()
    corpus = tokenize(read_text([]), study.load_teacher()[1], settings.block)
    for name, loss_of in (("hard_labels", qat._hard_loss), ("distilled", qat._soft_loss)):
        _, course = setup.trained(name, 0.0, loss_of)
        for step, loss in enumerate(course["losses"]):
            scored = qat.score(setup.teacher, qat.Text.whole(corpus.batch(0, step, settings.batch)))
            torch.manual_seed(step)  # of the dropout
            assert loss_of(untrained, scored, torch.float32).item() == loss


def test_tables(found: dict[str, Any]) -> None:
    *lines, note = qat_tables.markdown(found).splitlines()
    assert all(line == "" or line.startswith("| ") for line in lines)
    assert "changes the KL by 0." in note
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines}
    for name, label in qat_tables.STUDENTS.items():
        assert f"| {found['students'][name]['forward_kl']:.4f} |" in rows[label]
    row = found["students"]["distilled"]["small_kl"][1]
    assert f"| {row['bfloat16_reference']:.2e} |" in rows["0.1"]
    assert f"| {row['rounded_logits']:.2e} |" in rows["0.1"]
    error = row["bfloat16"] / row["bfloat16_reference"] - 1
    assert f"| {100 * error:+.4f}% |" in rows["0.1"]


@pytest.mark.parametrize("name", TRAINED)
def test_interrupted_study_finds_the_same(
    name: str,
    study: list[str],
    tmp_path: Path,
    found: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = TRAINED[: TRAINED.index(name)]
    saved = interrupted(study, tmp_path / "run", trained=len(before), at_step=1)
    assert saved["training"]["name"] == name
    assert len(saved["training"]["state"]["losses"]) == 2
    assert set(saved["found"]) & set(TRAINED) == set(before)
    taken, whole = [], training.Training.step
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "step", lambda run: taken.append(run) or whole(run))
        assert_goes_on_to(found, study, tmp_path / "run")
    assert len(taken) == 2 + 4 * (name == "hard_labels")


def test_study_killed_while_a_student_is_judged_finds_the_same(
    study: list[str], tmp_path: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(qat, "small_kls", killed)
        saved = stopped(study, tmp_path / "run")
    assert set(saved["found"]) & set(TRAINED) == {"hard_labels"}
    assert "training" not in saved  # what it found is enough
    assert_goes_on_to(found, study, tmp_path / "run")


# ---- on a real model -----------------------------------------------------------------------------


@pytest.mark.slow
def test_distillation_beats_what_it_is_compared_with(smollm2: Path, tmp_path: Path) -> None:
    study, printed = quick_study("quantised_student.py", smollm2, tmp_path / "run")
    assert "distilled" in printed
    students = study["students"]
    distilled = students["distilled"]
    assert distilled["forward_kl"] < 0.9 * students["post_training"]["forward_kl"]
    assert distilled["forward_kl"] < 0.95 * students["hard_labels"]["forward_kl"]
    assert distilled["acceptance_rate"] > students["post_training"]["acceptance_rate"]
    assert distilled["converted_kl"] == distilled["prepared_kl"]
    assert_right_where_rounded_logits_are_not(distilled["small_kl"])
