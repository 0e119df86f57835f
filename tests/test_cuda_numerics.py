"""On a GPU: small divergences, extreme logits, infinities and NaN."""

import math
from functools import partial

import cases
import pytest
import torch
from cases import (
    DIVERGENCES,
    assert_not_worse,
    close,
    form_inputs,
    make_teacher,
    randn,
    run,
    true_rows,
)

import fastdistill as fd

pytestmark = pytest.mark.cuda

DEVICE = "cuda"
INF = math.inf
# A row of one block with a rest, and one that is shared by several blocks where there are clusters.
VOCABS = (1031, 40003)
OTHERS = torch.tensor([0, 1, 3])  # where row 2 of 4 is the bad one


rows = partial(cases.rows, device=DEVICE)


# ---- small and extreme -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype_", "noise"),
    [
        (torch.float32, 0.3),
        (torch.float32, 0.05),
        (torch.float32, 0.005),
        (torch.bfloat16, 0.05),
        (torch.bfloat16, 0.01),
    ],
)
def test_small_divergences_keep_their_digits(divergence, dtype_, noise):
    """KL of 5e-2 to 1e-5, the regime of a quantised student; bfloat16 inputs are taken as exact."""
    teacher = randn(2, 32000, seed=1, scale=3.0, dtype=dtype_)
    student = (teacher + randn(2, 32000, seed=2, scale=noise)).to(dtype_)
    value, _ = rows(student, teacher, divergence)
    exact, _ = true_rows(student, teacher, divergence)
    torch.testing.assert_close(value.double(), exact, rtol=1e-3, atol=0.0)


def test_same_logits_on_both_sides(divergence, dtype):
    student = randn(3, 1031, scale=3.0, dtype=dtype)
    value, _ = rows(student, student.clone(), divergence)
    assert (value >= 0).all()
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 50.0])
def test_extreme_temperatures(divergence, temperature):
    student = randn(3, 33, seed=1)
    assert_not_worse(
        fd.distillation_loss,
        {"student_logits": student},
        fd.TeacherLogits(randn(3, 33, seed=2)),
        divergence=divergence,
        log_prob=float(student.max() - student.min()) / temperature,
        temperature=temperature,
        scale_by_temperature_squared=temperature > 1,
        device=DEVICE,
    )


@pytest.mark.parametrize("size", [30.0, 88.0, 300.0])
@pytest.mark.parametrize("dtype_", [torch.float32, torch.bfloat16])
def test_confidently_wrong_student(divergence, size, dtype_):
    """One-hot-like rows on different tokens: float64's value and gradient, nothing infinite."""
    student = torch.full((3, 33), -size, dtype=dtype_)
    teacher = student.clone()
    student[:, 0] = size
    teacher[0, 0], teacher[1, 8], teacher[2, 32] = size, size, 0.0
    assert all(result.isfinite().all() for result in rows(student, teacher, divergence))
    assert_not_worse(
        fd.distillation_loss,
        {"student_logits": student},
        fd.TeacherLogits(teacher),
        divergence=divergence,
        device=DEVICE,
    )


def test_huge_logits_in_half_precision(divergence):
    """exp is never taken before the maximum is subtracted."""
    student, teacher = (randn(3, 33, seed=s, scale=2e4).clamp(-65000, 65000).half() for s in (1, 2))
    value, gradient = rows(student, teacher, divergence)
    exact_value, exact_gradient = true_rows(student, teacher, divergence)
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-5, atol=1e-6)
    # Some roundings of log-probabilities as large as these, and that of the storage.
    atol = 4 * torch.finfo(torch.float32).eps * float(exact_value.max()) + 1e-6
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-3, atol=atol)


def test_tokens_that_are_impossible_for_both(divergence):
    """Both probabilities under e^-104, where float32 has no number for them."""
    student, teacher = randn(3, 33, seed=1), randn(3, 33, seed=2)
    student[:, 9:20] -= 150.0
    teacher[:, 9:20] -= 130.0
    close(rows(student, teacher, divergence), true_rows(student, teacher, divergence))


@pytest.mark.parametrize("lowest", [-INF, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_padding_on_both_sides_adds_nothing(divergence, lowest, temperature):
    """Also where the temperature makes the lowest finite number overflow."""
    student, teacher = randn(3, 33, seed=1), randn(3, 33, seed=2)
    padding = torch.full((3, 7), lowest)
    padded = [torch.cat([padding, x, padding], -1) for x in (student, teacher)]
    clean = rows(student, teacher, divergence, temperature=temperature)
    value, gradient = rows(*padded, divergence, temperature=temperature)
    torch.testing.assert_close(value, clean[0])
    torch.testing.assert_close(gradient[:, 7:-7], clean[1])
    assert (gradient[:, :7] == 0).all()
    assert (gradient[:, -7:] == 0).all()


# ---- -inf: probability zero --------------------------------------------------------------------


@pytest.mark.parametrize("vocab_", VOCABS)
def test_teacher_minus_inf(divergence, vocab_):
    """p = 0 < q: the reference's value, +inf where it is; where finite, its gradient too."""
    student, teacher = randn(3, vocab_, seed=1), randn(3, vocab_, seed=2)
    teacher[:, 5:9] = teacher[1, -7:] = -INF
    value, gradient = rows(student, teacher, divergence)
    exact_value, exact_gradient = true_rows(student, teacher, divergence)
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-5, atol=1e-6)
    if not divergence.needs_teacher_support:
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("vocab_", VOCABS)
def test_student_minus_inf(divergence, vocab_):
    """q = 0 < p: the value of the formula, +inf for a forward KL."""
    student, teacher = randn(3, vocab_, seed=1), randn(3, vocab_, seed=2)
    student[:, 5:9] = student[1, -7:] = -INF
    value, gradient = rows(student, teacher, divergence)
    exact_value, _ = true_rows(student, teacher, divergence)
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-5, atol=1e-6)
    if exact_value.isfinite().all():
        assert (gradient[:, 5:9] == 0).all()


@pytest.mark.parametrize("infinite", [d for d in DIVERGENCES if d.needs_teacher_support], ids=repr)
def test_infinite_where_the_teacher_is_zero(infinite):
    """+inf, not NaN and not a large number; valid_vocab takes the token out."""
    student, teacher = randn(2, 9), randn(2, 9, seed=1)
    teacher[:, 8] = -INF
    value, _ = rows(student, teacher, infinite)
    assert (value == INF).all()
    results = rows(student, fd.TeacherLogits(teacher, valid_vocab=8), infinite)
    assert all(result.isfinite().all() for result in results)


# ---- NaN and +inf ------------------------------------------------------------------------------


def assert_only_row_2_is_nan(results, clean):
    value, gradient, *_ = results
    assert value[2].isnan()
    assert torch.equal(value[OTHERS], clean[0][OTHERS])
    assert torch.equal(gradient[OTHERS], clean[1][OTHERS])


@pytest.mark.parametrize("poison", [math.nan, INF])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("column", [0, -1])
@pytest.mark.parametrize("vocab_", VOCABS)
def test_poisoned_rows_are_nan_and_alone(divergence, poison, side, column, vocab_):
    student, teacher = randn(4, vocab_, seed=1), randn(4, vocab_, seed=2)
    clean = rows(student, teacher, divergence)
    (student if side == "student" else teacher)[2, column] = poison
    assert_only_row_2_is_nan(rows(student, teacher, divergence), clean)


@pytest.mark.parametrize("kind_", ["bucket", "renormalize", "zero", "uniform", "sampled"])
@pytest.mark.parametrize("poison", [math.nan, INF])
@pytest.mark.parametrize("vocab_", VOCABS)
def test_poisoned_rows_of_lists_are_nan_and_alone(kind_, poison, vocab_):
    """A listed token is poisoned: an unlisted one is out of sight of a renormalised list."""
    student, teacher = randn(4, vocab_, seed=1), make_teacher(kind_, 4, vocab_)
    clean = rows(student, teacher, fd.ForwardKL())
    student[2, int(teacher.ids[2, 0])] = poison
    assert_only_row_2_is_nan(rows(student, teacher, fd.ForwardKL()), clean)


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_row_without_any_token_is_nan(divergence, side):
    student, teacher = randn(4, 33, seed=1), randn(4, 33, seed=2)
    clean = rows(student, teacher, divergence)
    if side != "teacher":
        student[2] = -INF
    if side != "student":
        teacher[2] = -INF
    assert_only_row_2_is_nan(rows(student, teacher, divergence), clean)


def test_poisoned_hidden_state_stays_in_its_row():
    function, inputs = form_inputs("linear", 4, 33)
    config = {"reduction": "none", "chunk_size": 3, "device": DEVICE}
    clean = run(function, inputs, randn(4, 33), **config)
    inputs["student_hidden"][2, 0] = math.nan
    assert_only_row_2_is_nan(run(function, inputs, randn(4, 33), **config), clean)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("form", ["logits", "linear"])
def test_uncounted_rows_are_never_looked_at(form, kind, reduction):
    """NaN in them reaches neither the loss nor any gradient, that by the head included."""
    function, inputs = form_inputs(form, 4, 33)
    teacher, name = make_teacher(kind, 4, 33), next(iter(inputs))
    config = {
        "mask": torch.arange(4) != 2, "reduction": reduction, "chunk_size": 3, "device": DEVICE,
    }  # fmt: skip
    if form == "logits":
        del config["chunk_size"]
    clean = run(function, inputs, teacher, **config)
    inputs[name][2] = math.nan
    if kind != "sampled":
        values = {"logits": "logits", "head": "hidden"}.get(kind, "log_probs")
        getattr(teacher, values)[2] = math.nan
    results = run(function, inputs, teacher, **config)
    assert all(map(torch.equal, results, clean))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_every_half_precision_number_is_read_and_written(half):
    cases.assert_half_precision_is_read_and_written(half, DEVICE)
