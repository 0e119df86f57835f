"""The benchmark harness: it is right about who computes what, and says it in the stated columns."""

import itertools
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import fastdistill as fd

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import accuracy, cases, check, gemms, limits, measure, memory, report, suite
from bench.inputs import build_inputs
from bench.provider import OURS, Provider, by_loss
from bench.providers import PROVIDERS, TORCH

TINY = (
    cases.Case("logits", 16, 500, torch.float32),
    cases.Case("logits", 16, 500, torch.bfloat16, fd.JensenShannon()),
    cases.Case("top_k", 16, 500, torch.bfloat16, listed=7),
    cases.Case("linear", 24, 300, torch.bfloat16, student_width=16, teacher_width=24),
    cases.Case("linear", 16, 300, torch.float32, student_width=16, teacher_width=8, backward=False),
    cases.Case(
        "linear", 64, 300, torch.float32, student_width=16, teacher_width=8, half_masked=True
    ),
    cases.Case("linear_logits", 64, 300, torch.float32, student_width=16, half_masked=True),
    cases.Case("linear_logits", 16, 300, torch.bfloat16, student_width=16, frozen=True),
    cases.Case("linear_top_k", 16, 300, torch.float32, student_width=16, listed=7),
    cases.Case("linear_labels", 16, 300, torch.bfloat16, student_width=16),
    cases.Case("logits", 16, 500, torch.float32, backward=False),
)
EAGER = tuple(provider for provider in TORCH if not provider.compiled)
MACHINE = limits.Machine(copy=1e10, read=1e10, fresh=1e10, exps=1e9)
QUICKLY = suite.Limits(budget=0.01)


def case_name(case):
    return case.name


def wrong_provider(change):
    """Ours with another loss."""
    return Provider(
        "wrong", by_loss(lambda _: lambda *tensors: change(fd.distillation_loss, *tensors))
    )


@pytest.mark.parametrize("tiny", TINY, ids=case_name)
def test_every_participant_is_measured(tiny):
    providers = (OURS, *EAGER, *gemms.GEMMS, limits.FRESH_GRADIENT)
    rows = suite.run_case(tiny, MACHINE, QUICKLY, providers)
    assert [row.provider for row in rows] == [
        provider.name for provider in suite.participants(tiny, providers)
    ]
    for row in rows:
        assert row.note in ("", "one cold run")
        assert row.runs >= 1
        assert 0 < row.ms_p20 <= row.ms_p50 <= row.ms_p80
        assert row.percent_of_limit > 0
        assert (row.value_error is None) == (row.role == "limit")
    assert rows[0].ratio_to_ours == 1.0


@pytest.mark.parametrize("tiny", TINY, ids=case_name)
def test_limits_belong_to_what_they_limit(tiny):
    names = {provider.name for provider in suite.participants(tiny, PROVIDERS)}
    assert (gemms.GEMM_LIMIT in names) == tiny.has_head
    assert (limits.FRESH_GRADIENT.name in names) == (tiny.backward and not tiny.has_head)


def test_a_gradient_of_logits_needs_memory_too():
    ours, fresh = suite.run_case(TINY[0], MACHINE, QUICKLY, (OURS, limits.FRESH_GRADIENT))
    assert ours.limit_ms == pytest.approx(1e3 * MACHINE.seconds(TINY[0]) + fresh.ms_p50)
    assert limits.FRESH_GRADIENT.build(TINY[0], build_inputs(TINY[0]))()[0].shape == (16, 500)


@pytest.mark.parametrize(
    "change",
    [
        lambda loss, *tensors: loss(*tensors, divergence="reverse_kl"),
        lambda loss, *tensors: 1.01 * loss(*tensors),
        lambda loss, *tensors: loss(*tensors, temperature=1.05),
        lambda loss, *tensors: loss(*tensors) * float("nan"),
    ],
    ids=["divergence", "scale", "temperature", "nan"],
)
def test_a_wrong_rival_is_left_out(change):
    rows = suite.run_case(TINY[0], MACHINE, QUICKLY, (OURS, wrong_provider(change)))
    assert rows[0].runs > 0
    assert rows[1].runs == 0
    assert rows[1].ms_p50 is None
    assert "wrong" in rows[1].note


def test_a_wrong_fastdistill_is_an_error():
    impostor = replace(wrong_provider(lambda loss, *tensors: -loss(*tensors)), role="ours")
    with pytest.raises(suite.WrongResultError, match="wrong on logits-forward_kl"):
        suite.run_case(TINY[0], MACHINE, QUICKLY, (impostor,))


def test_what_cannot_be_had_is_said():
    absent = Provider("absent", EAGER[0].build, missing=lambda: "not installed")
    (row,) = suite.run_case(TINY[0], MACHINE, QUICKLY, (absent,))
    assert row.note == "skipped: not installed"


def test_slow_gemms_are_predicted_and_skipped():
    huge = replace(TINY[3], rows=1 << 20, vocab=1 << 20)
    reason = suite.reason_to_skip(huge, OURS, QUICKLY)
    assert reason is not None
    assert "predicted" in reason


def test_the_truth_is_that_of_all_rows():
    """Distinct rows that repeat have the mean, and their share of the gradients, of one copy."""
    for case in TINY:
        inputs = build_inputs(case)
        rows = next(iter(inputs.leaves.values()))
        assert torch.equal(rows[:8], rows[8:16])
        result, true = OURS.build(case, inputs)(), check.truth(case, inputs)
        found = check.errors(result, true, inputs.tokens.get("mask"))
        assert check.is_right(found, case.dtype), case.name


def test_providers_take_turns():
    calls = []
    runners = {name: lambda name=name: calls.append(name) for name in "abc"}
    ticks = itertools.count()
    samples = measure.interleave(runners, budget=100, most_rounds=3, clock=lambda: next(ticks))
    assert "".join(calls) == "aabbcc" * 3
    assert samples == {name: [1, 1, 1] for name in "abc"}


def test_a_slow_provider_leaves_when_its_budget_is_spent():
    now = [0.0]

    def takes(seconds):
        return lambda: now.__setitem__(0, now[0] + seconds)

    runners = {"slow": takes(4.0), "fast": takes(1.0)}
    samples = measure.interleave(runners, budget=9.0, most_rounds=20, clock=lambda: now[0])
    assert samples == {"slow": [4.0, 4.0], "fast": [1.0] * 9}


def test_a_slow_provider_has_its_least_turns():
    now = itertools.count(step=10)
    runners = dict.fromkeys("ab", lambda: None)
    samples = measure.interleave(
        runners, budget=5.0, most_rounds=9, least_turns={"a": 3}, clock=lambda: next(now)
    )
    assert samples == {"a": [10] * 3, "b": [10]}


def test_ours_and_limits_are_timed_again_where_a_rival_is_not():
    rows = suite.run_case(
        TINY[0], MACHINE, suite.Limits(budget=0.0), [OURS, limits.FRESH_GRADIENT, TORCH[0]]
    )
    runs = {row.provider: row.runs for row in rows if row.ms_p50 is not None}
    assert runs.pop(TORCH[0].name) == 1
    assert runs == dict.fromkeys((OURS.name, limits.FRESH_GRADIENT.name), suite.LEAST_TURNS)


def test_percentiles():
    assert measure.percentiles([0.001 * n for n in range(11)]) == pytest.approx(
        (0.002, 0.005, 0.008)
    )


def test_memory_of_a_process_of_its_own():
    case = cases.Case("logits", 32, 18992, torch.bfloat16)
    ours = memory.measure_peak(case, OURS, timeout=60)
    eager = memory.measure_peak(case, TORCH[0], timeout=60)
    assert ours.complete
    assert eager.complete
    # At least the gradient; eager also holds log-probabilities of both sides in float32.
    assert ours.megabytes > 0.5 * case.logits_bytes / 1e6
    assert eager.megabytes > 0.5 * 4 * case.logits_bytes / 1e6


def test_memory_that_is_not_there():
    huge = replace(TINY[3], rows=1 << 20, vocab=1 << 20)
    assert "predicted" in memory.unaffordable(huge, TORCH[0])
    assert memory.unaffordable(huge, OURS) is None


def test_csv_has_the_stated_columns(tmp_path):
    rows = suite.run_case(TINY[0], MACHINE, QUICKLY, (OURS,))
    facts = report.header() | MACHINE.describe()
    report.write_csv(tmp_path / "new" / "machine.csv", facts, rows)
    read_facts, read_rows = report.read_csv(tmp_path / "new" / "machine.csv")
    assert read_facts == facts
    assert {"cpu", "threads", "compiler", "torch", "fastdistill", "date"} <= set(read_facts)
    assert list(read_rows[0]) == [field.name for field in fields(report.Row)]
    assert read_rows[0]["case"] == TINY[0].name
    assert float(read_rows[0]["ms_p50"]) == pytest.approx(rows[0].ms_p50, rel=1e-3)
    assert rows[0].case in report.format_table(rows)


def test_machine_rates_are_positive():
    machine = limits.measure_machine(size=1 << 20)
    assert min(machine.copy, machine.read, machine.fresh, machine.exps) > 0
    assert all(machine.seconds(case) > 0 for case in TINY)


def test_accuracy_lists_every_divergence():
    table = accuracy.markdown(vocab=50)
    for divergence in cases.DIVERGENCES:
        assert table.count(f"| {divergence} |") == len(accuracy.DTYPES)
    assert "nan" not in table


def test_near_inputs_have_the_stated_divergence():
    for kl in (1e-2, 1e-5):
        student, teacher = accuracy.near(kl)(5000)
        value = fd.distillation_loss(student, teacher)
        assert float(value) == pytest.approx(kl, rel=0.2)
