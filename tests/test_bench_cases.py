"""The cases of the benchmark: their names, their work, and what the inputs are."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fastdistill as fd

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import check, gemms, matrix, packages, suite, text
from bench.cases import Case
from bench.inputs import build_inputs
from bench.provider import OURS
from bench.providers import PROVIDERS

SLOW_MACHINE = 100e9  # flop/s of two cores


def chosen(*, everything=False, quick=False, pattern=None):
    return matrix.select(everything=everything, quick=quick, pattern=pattern)


def head(**fields):
    return Case("linear", 64, 300, torch.float32, student_width=16, teacher_width=8, **fields)


@pytest.mark.parametrize("quick", [False, True])
def test_names_of_cases_are_their_own(quick):
    names = [case.name for case in chosen(everything=True, quick=quick)]
    assert len(set(names)) == len(names)


def test_the_grid_is_whole():
    grid = matrix.ALL[:64]
    key = {(c.kind, c.dtype, c.backward, c.vocab) for c in grid}
    assert len(key) == 4 * 2 * 2 * 4
    assert {case.vocab for case in grid} == {49152, 128256, 151936, 256000}


def test_ours_takes_seconds_at_most():
    slowest = max(case.flops for case in matrix.ALL if case.timed)
    assert slowest / SLOW_MACHINE < 6.0


def test_every_pattern_of_the_default_names_a_case():
    default = chosen()
    assert len(set(default)) == len(default) < len(matrix.ALL)
    for pattern in matrix._DEFAULT:
        assert any(case in default for case in chosen(pattern=pattern)), pattern
    assert {case.kind for case in default} == {case.kind for case in matrix.ALL}


def test_a_pattern_chooses_of_all_cases_by_their_full_name():
    assert all(case.vocab == 128256 for case in chosen(pattern="V128256"))
    assert chosen(pattern="V128256")[0] not in chosen()
    assert [c.vocab for c in chosen(pattern="top_k-*bfloat16*V128256*only", quick=True)] == [
        128256 // 8,
        128256 // 8,
    ]
    assert chosen(pattern="no such case") == []


def test_a_masked_case_has_half_the_work_of_its_twin():
    case = head()
    masked = replace(case, half_masked=True)
    mask = masked.mask()
    assert mask.sum() == masked.counted == case.rows // 2
    # question, answer, question, answer
    assert mask.view(4, -1).float().mean(-1).tolist() == [0, 1, 0, 1]
    assert 2 * masked.flops == case.flops
    assert 2 * masked.exps == case.exps == 2 * case.rows * case.vocab
    assert replace(case, kind="linear_top_k").exps == case.rows * case.vocab
    assert masked.name == f"{case.name}-half_masked"


def test_work_of_a_forward_alone():
    case = head()
    forward = replace(case, backward=False)
    tokens = case.rows * case.vocab
    assert case.flops == 2 * tokens * (3 * 16 + 8)
    assert forward.flops == 2 * tokens * (16 + 8)
    inputs = 4 * ((case.rows + case.vocab) * (16 + 8))
    assert forward.bytes == inputs
    assert case.bytes == inputs + 4 * (case.rows + case.vocab) * 16
    assert replace(forward, kind="linear_labels").flops == 2 * tokens * 16
    listed = replace(forward, kind="linear_top_k", listed=7)
    assert listed.bytes == 4 * (case.rows + case.vocab) * 16 + case.rows * 7 * 12


def test_work_of_a_head_that_is_frozen_and_of_a_teacher_whose_logits_are_given():
    case = head()
    tokens = case.rows * case.vocab
    frozen = replace(case, frozen=True)
    assert frozen.name == f"{case.name}-frozen"
    assert frozen.flops == case.flops - 2 * tokens * 16
    assert frozen.bytes == case.bytes - 4 * case.vocab * 16
    gradients = OURS.build(frozen, build_inputs(frozen))()[1:]
    assert [tuple(gradient.shape) for gradient in gradients] == [(case.rows, 16)]
    given = replace(case, kind="linear_logits", teacher_width=0)
    assert given.flops == case.flops - 2 * tokens * 8
    assert given.exps == case.exps
    assert given.bytes == case.bytes - 4 * (case.rows + case.vocab) * 8 + 4 * tokens


def test_gemms_are_those_of_the_counted_rows(monkeypatch):
    case = replace(head(half_masked=True), student_width=64, teacher_width=32)
    monkeypatch.setattr(gemms, "_gemm_rates", lambda dtype: (1.0, 1.0, 1.0))
    assert gemms.predicted_gemm_seconds(case, OURS) == case.flops
    inputs = build_inputs(case)
    student, teacher = sides = gemms._sides(inputs, torch.float32, torch.float32)
    mask = inputs.tokens["mask"]
    assert torch.equal(student.hidden, inputs.leaves["student_hidden"][mask])
    assert torch.equal(teacher.hidden, inputs.teacher.hidden[mask])
    assert gemms._sides(inputs, torch.float32, torch.float32) is sides


@pytest.mark.parametrize("dtype_", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("provider", gemms.GEMMS, ids=lambda provider: provider.name)
def test_gemms_of_a_limit_are_done(provider, dtype_):
    case = replace(head(), dtype=dtype_, chunk_size=24)
    inputs = build_inputs(case)
    by_hidden, by_weight = provider.build(case, inputs)()
    hidden, weight = (leaf.detach().double() for leaf in inputs.leaves.values())
    logits = hidden @ weight.T  # stand for their own gradient
    rtol = 0.05 if dtype_ == torch.bfloat16 else 1e-5
    for found, exact in ((by_hidden, logits @ weight), (by_weight, logits.T @ hidden)):
        torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=rtol * exact.abs().max())


def test_rows_must_repeat_evenly():
    with pytest.raises(ValueError, match="multiple of 32, got 40"):
        replace(head(), rows=40, half_masked=True)


def test_no_two_rows_of_a_head_are_the_same(monkeypatch):
    monkeypatch.setattr("bench.inputs._POOL", 61)  # a prime, as the real one is
    weight = build_inputs(Case("linear_labels", 8, 50, torch.float32, student_width=8)).leaves[
        "student_weight"
    ]
    assert len(torch.unique(weight.detach(), dim=0)) == 50
    assert len(torch.unique(weight.detach())) == 61


def test_hard_labels_are_the_cross_entropy():
    case = Case("linear_labels", 16, 300, torch.float32, student_width=16)
    inputs = build_inputs(case)
    hidden, weight = inputs.leaves.values()
    expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), inputs.tokens["labels"])
    loss, *gradients = OURS.build(case, inputs)()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients, list(torch.autograd.grad(expected, (hidden, weight))))
    names = {provider.name for provider in suite.participants(case, PROVIDERS)}
    assert {"torch linear_cross_entropy, chunked", "cut-cross-entropy compiled"} <= names
    assert not names & {"liger", "trl", "torch short formula"}


@pytest.mark.parametrize("half_masked", [False, True])
def test_the_truth_of_a_head_is_that_of_all_its_logits(half_masked, monkeypatch):
    monkeypatch.setattr(check, "_PANEL", 77)
    case = head(half_masked=half_masked)
    inputs = build_inputs(case)
    leaves = [leaf.detach().double().requires_grad_() for leaf in inputs.leaves.values()]
    wide = fd.TeacherHead(inputs.teacher.hidden.double(), inputs.teacher.weight.double())
    loss = fd.reference.linear_distillation_loss(*leaves, wide, **inputs.tokens)
    result = (loss.detach(), *torch.autograd.grad(loss, leaves))
    found = check.errors(result, check.truth(case, inputs), inputs.tokens.get("mask"))
    assert max(found) < 1e-12
    wrong = (result[0], result[1], result[2].clone())
    wrong[2][-1, -1] += result[2].abs().max()
    assert check.errors(wrong, check.truth(case, inputs), case.mask()).gradient > 0.9


def test_a_gradient_where_no_token_counts_is_an_error():
    case = head(half_masked=True)
    inputs = build_inputs(case)
    loss, by_hidden, by_weight = OURS.build(case, inputs)()
    assert check.errors((loss, by_hidden, by_weight), check.truth(case, inputs), case.mask())[1] < 1
    by_hidden[0] = 2 * by_hidden.abs().max()  # a token of a question
    assert (
        check.errors((loss, by_hidden, by_weight), check.truth(case, inputs), case.mask())[1] >= 1
    )


def test_packages_that_are_absent_say_so():
    assert packages._attribute("no_such_package", "loss")[1].startswith("cannot import")


def test_text_needs_its_packages(monkeypatch):
    case = next(case for case in matrix.ALL if case.text)
    monkeypatch.setattr(text, "missing", lambda: "no model")
    assert suite.reason_to_skip(case, OURS, suite.Limits()) == "no model"
    assert suite.reason_to_skip(replace(case, text=False), OURS, suite.Limits()) is None


def test_a_case_of_text_has_the_tensors_of_its_models(monkeypatch):
    heads = [text.ModelHead(torch.randn(8, 4), torch.randn(30, 4)) for _ in range(2)]
    monkeypatch.setattr(text, "heads", lambda tokens: heads)
    case = Case("linear", 8, 30, torch.bfloat16, student_width=4, teacher_width=4, text=True)
    inputs = build_inputs(case)
    assert torch.equal(inputs.leaves["student_weight"], heads[0].weight.bfloat16())
    assert torch.equal(inputs.teacher.hidden, heads[1].hidden.bfloat16())
    assert case.distinct == 8
    assert check.is_right(
        check.errors(OURS.build(case, inputs)(), check.truth(case, inputs)), case.dtype
    )
