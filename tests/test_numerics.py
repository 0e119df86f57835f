"""Small divergences, extreme logits, infinities and NaN."""

import math

import pytest
import torch
from cases import DIVERGENCES, assert_not_worse, close, make_teacher, randn, rows, run, true_rows

import fastdistill as fd

INF = math.inf


# ---- a student that is nearly the teacher ------------------------------------------------------

VOCAB = 32000


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
def test_small_divergences_keep_their_digits(divergence, dtype_, noise, isa):
    """KL of 5e-2 to 1e-5, the regime of a quantised student; bfloat16 inputs are taken as exact."""
    teacher = randn(2, VOCAB, seed=1, scale=3.0, dtype=dtype_)
    student = (teacher + randn(2, VOCAB, seed=2, scale=noise)).to(dtype_)
    value, _ = rows(student, teacher, divergence)
    exact, _ = true_rows(student, teacher, divergence)
    kl, _ = true_rows(student, teacher, fd.ForwardKL())
    assert 5e-6 < kl.min() < kl.max() < 0.1
    torch.testing.assert_close(value.double(), exact, rtol=1e-3, atol=0.0)
    # With a gradient made in the same pass.
    loss, _ = rows(student, teacher, divergence, reduction="sum")
    torch.testing.assert_close(loss.double(), exact.sum(), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_small_divergence_with_one_token_far_apart(divergence, reduction, isa):
    """Nearly all of it is from a token that the series for small differences does not cover."""
    teacher = randn(2, 1100, seed=1)
    student = teacher + randn(2, 1100, seed=2, scale=1e-3)
    teacher[:, 7], student[:, 7] = -6.0, -3.0
    actual = rows(student, teacher, divergence, reduction=reduction)
    exact = true_rows(student, teacher, divergence, reduction=reduction)
    torch.testing.assert_close(actual[0].double(), exact[0], rtol=1e-3, atol=0.0)


# ---- extreme logits ----------------------------------------------------------------------------


def test_tokens_that_are_impossible_for_both(divergence, isa):
    """Both probabilities under e^-104, where float32 has no number for them."""
    student, teacher = randn(3, 33, seed=1), randn(3, 33, seed=2)
    student[:, 9:20] -= 150.0
    teacher[:, 9:20] -= 130.0
    close(rows(student, teacher, divergence), true_rows(student, teacher, divergence))


@pytest.mark.parametrize("temperature", [0.05, 50.0])
def test_extreme_temperatures(divergence, temperature, isa):
    student = randn(3, 33, seed=1)
    assert_not_worse(
        fd.distillation_loss,
        {"student_logits": student},
        fd.TeacherLogits(randn(3, 33, seed=2)),
        divergence=divergence,
        log_prob=float(student.max() - student.min()) / temperature,
        temperature=temperature,
        scale_by_temperature_squared=temperature > 1,
    )


@pytest.mark.parametrize("size", [30.0, 88.0, 300.0])
@pytest.mark.parametrize("dtype_", [torch.float32, torch.bfloat16])
def test_confidently_wrong_student(divergence, size, dtype_, isa):
    """One-hot-like rows on different tokens: float64's value and gradient, nothing infinite."""
    student = torch.full((3, 33), -size, dtype=dtype_)
    teacher = student.clone()
    student[:, 0] = size
    teacher[0, 0], teacher[1, 8], teacher[2, 32] = size, size, 0.0
    value, gradient = rows(student, teacher, divergence)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert_not_worse(
        fd.distillation_loss,
        {"student_logits": student},
        fd.TeacherLogits(teacher),
        divergence=divergence,
    )


@pytest.mark.parametrize(("shift", "gap"), [(512.0, 0.0), (0.0, 16.0), (-64.0, 128.0)])
def test_level_of_the_logits_costs_no_digits(divergence, shift, gap, isa):
    """Logits that the shifts leave exact: the common level is free, a gap costs 1e-7 of itself."""
    student, teacher = ((8 * randn(3, 33, seed=s, scale=2.0)).round() / 8 for s in (1, 2))
    value, gradient = rows(student, teacher, divergence)
    shifted = rows(student + shift + gap, teacher + shift, divergence)
    tolerance = {"rtol": 2e-6, "atol": 1e-6 + 1e-7 * gap}
    torch.testing.assert_close(shifted[0], value, **tolerance)
    torch.testing.assert_close(shifted[1], gradient, **tolerance)


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_level_that_rises_by_more_than_an_exp_can_hold(divergence, side, isa):
    """From the first tile of a row to the second; a third is not whole. The other does not rise."""
    logits = {"student": randn(2, 1100, seed=1), "teacher": randn(2, 1100, seed=2)}
    for own in logits.values():
        own[:, 7] = 5.0
    for name in logits if side == "both" else [side]:
        logits[name][:, :512] -= 200.0
    close(rows(*logits.values(), divergence), true_rows(*logits.values(), divergence))


@pytest.mark.parametrize("start", [0, 512, 1024])
def test_a_tile_of_impossible_tokens_changes_nothing(divergence, start, isa):
    logits = [randn(2, 1100, seed=s, scale=2.0) for s in (1, 2)]
    end = start + 512
    expected = true_rows(*(torch.cat([x[:, :start], x[:, end:]], -1) for x in logits), divergence)
    for x in logits:
        x[:, start:end] = -INF
    value, gradient = rows(*logits, divergence)
    close((value, torch.cat([gradient[:, :start], gradient[:, end:]], -1)), expected)
    assert torch.equal(gradient[:, start:end], torch.zeros_like(gradient[:, start:end]))


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize(
    ("own", "other"),
    [
        ({"student_scale": 0.7}, {}),
        ({}, {"scale": 1.3}),
        ({"student_scale": 1.5}, {"scale": 1.5}),
        ({"student_softcap": 4.0}, {}),
        ({}, {"softcap": 4.0}),
        ({}, {"dtype": torch.bfloat16}),
    ],
    ids=str,
)
def test_sides_whose_logits_are_made_in_different_ways(
    divergence, own, other, temperature, reduction, isa
):
    """In rows of two whole tiles and one that is not."""
    student, teacher = (randn(2, 1100, seed=s, scale=2.0) for s in (1, 2))
    options = dict(other)
    teacher = fd.TeacherLogits(teacher.to(options.pop("dtype", torch.float32)), **options)
    config = {"temperature": temperature, "reduction": reduction, **own}
    actual = rows(student, teacher, divergence, **config)
    close(actual, true_rows(student, teacher, divergence, **config))


@pytest.mark.parametrize("kind_", ["bucket", "renormalize", "uniform"])
def test_confidently_wrong_student_of_a_list(kind_, isa):
    student = torch.full((3, 33), -30.0)
    student[:, 0] = 30.0
    teacher = make_teacher(kind_, 3, 33)
    for known in (fd.ForwardKL(), fd.ReverseKL(), fd.JensenShannon()):
        close(rows(student, teacher, known), true_rows(student, teacher, known), rtol=1e-4)


@pytest.mark.parametrize("constant", [0.0, 30.0, -30.0, 1e8])
def test_constant_rows(divergence, constant):
    student = torch.full((2, 33), constant)
    value, gradient = rows(student, torch.zeros(2, 33), divergence)
    torch.testing.assert_close(value, torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, torch.zeros(2, 33), rtol=0, atol=1e-6)


def test_huge_logits_in_half_precision(divergence):
    """exp is never taken before the maximum is subtracted."""
    student = randn(3, 33, seed=1, scale=2e4).clamp(-65000, 65000).half()
    teacher = randn(3, 33, seed=2, scale=2e4).clamp(-65000, 65000).half()
    value, gradient = rows(student, teacher, divergence)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    exact_value, exact_gradient = true_rows(student, teacher, divergence)
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-5, atol=1e-6)
    # Some roundings of log-probabilities as large as these, and that of the storage.
    atol = 4 * torch.finfo(torch.float32).eps * float(exact_value.max()) + 1e-6
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-3, atol=atol)


def test_padding_with_the_lowest_finite_number(divergence, isa):
    """What masked_fill(finfo.min) leaves on both sides adds nothing, also when T makes it overflow."""
    student, teacher = randn(3, 33, seed=1), randn(3, 33, seed=2)
    padding = torch.full((3, 7), torch.finfo(torch.float32).min)
    padded = [torch.cat([padding, x, padding], -1) for x in (student, teacher)]
    for temperature in (1.0, 0.5):
        clean = rows(student, teacher, divergence, temperature=temperature)
        value, gradient = rows(*padded, divergence, temperature=temperature)
        torch.testing.assert_close(value, clean[0])
        torch.testing.assert_close(gradient[:, 7:-7], clean[1])
        assert (gradient[:, :7] == 0).all()


# ---- -inf: probability zero --------------------------------------------------------------------


def test_teacher_minus_inf(divergence, isa):
    """p = 0 < q: the reference's value, +inf where it is; where finite, its gradient too."""
    student, teacher = randn(3, 1031, seed=1), randn(3, 1031, seed=2)
    teacher[:, 5:9] = teacher[1, 1024:] = -INF
    value, gradient = rows(student, teacher, divergence)
    exact_value, exact_gradient = true_rows(student, teacher, divergence)
    assert divergence.needs_teacher_support == bool(exact_value.isinf().all())
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-5, atol=1e-6)
    if not divergence.needs_teacher_support:
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-6)


def test_student_minus_inf(divergence, isa):
    """q = 0 < p: the value of the formula, +inf for a forward KL."""
    student, teacher = randn(3, 1031, seed=1), randn(3, 1031, seed=2)
    student[:, 5:9] = student[1, 1024:] = -INF
    value, gradient = rows(student, teacher, divergence)
    exact_value, _ = true_rows(student, teacher, divergence)
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-5, atol=1e-6)
    if exact_value.isfinite().all():
        assert (gradient[:, 5:9] == 0).all()


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_gradient_of_a_reduced_loss_at_minus_inf(divergence, side, isa):
    """What the forward pass keeps for it gives what row losses take from the logits."""
    student, teacher = randn(2, 1100, seed=1), randn(2, 1100, seed=2)
    for name, logits in (("student", student), ("teacher", teacher)):
        if side in (name, "both"):
            logits[:, 5:9] = logits[1, 500:] = -INF
    value, by_row = rows(student, teacher, divergence, upstream=torch.ones(2))
    loss, by_sum = rows(student, teacher, divergence, reduction="sum")
    torch.testing.assert_close(loss, value.sum())
    if loss.isfinite():
        torch.testing.assert_close(by_sum, by_row, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("infinite", [d for d in DIVERGENCES if d.needs_teacher_support], ids=repr)
def test_infinite_where_the_teacher_is_zero(infinite, isa):
    """+inf, not NaN and not a large number; valid_vocab takes the token out."""
    student, teacher = randn(2, 9), randn(2, 9, seed=1)
    teacher[:, 8] = -INF
    value, _ = rows(student, teacher, infinite)
    assert (value == INF).all()
    value, gradient = rows(student, fd.TeacherLogits(teacher, valid_vocab=8), infinite)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("upstream", [None, torch.ones(2)], ids=["fused", "by row"])
def test_lists_of_a_student_that_excludes_a_listed_token(listed_case, upstream, isa):
    """The reference's value, +inf where it is: neither NaN nor a large number."""
    divergence, kind_ = listed_case
    student, teacher = randn(2, 1031, seed=1), make_teacher(kind_, 2, 1031)
    student[0, teacher.ids[0, :2]] = -INF
    config = {"reduction": "none" if upstream is not None else "sum", "upstream": upstream}
    value, _ = rows(student, teacher, divergence, **config)
    exact, _ = true_rows(student, teacher, divergence, **config)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype_", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_unlisted_logits_of_a_renormalised_list_have_no_gradient(dtype_, reduction, isa):
    """Whatever they are: exp overflows just above 88, or 709."""
    student = torch.zeros(1, 1031, dtype=dtype_)
    student[0, 3:] = torch.linspace(80, 95, 1028)
    student[0, 500:] += 620
    teacher = fd.TopKTeacher(
        torch.tensor([[1, 2]]), torch.tensor([[0.6, 0.4]], dtype=dtype_).log(), tail="renormalize"
    )
    value, gradient = rows(student, teacher, reduction=reduction)
    close((value, gradient), true_rows(student, teacher, "forward_kl", reduction=reduction))
    assert (gradient[0, 3:] == 0).all()


# ---- the cross entropy ---------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_a_certain_label_has_no_cross_entropy(temperature, isa):
    student = torch.zeros(3, 1031)
    student[torch.arange(3), [0, 600, 1030]] = torch.tensor([100.0, 77.7, 1234.5])
    value, gradient = run(
        fd.distillation_loss, {"student_logits": student}, student.clone(),
        torch.tensor([0, 600, 1030]), soft_weight=0.0, hard_weight=1.0, temperature=temperature,
        reduction="none",
    )  # fmt: skip
    assert (value == 0).all()
    assert gradient.abs().max() < 1e-6


# ---- NaN and +inf ------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, INF])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("column", [0, 1030])
def test_poisoned_rows_are_nan_and_alone(divergence, poison, side, column, isa):
    student, teacher = randn(4, 1031, seed=1), randn(4, 1031, seed=2)
    clean_value, clean_gradient = rows(student, teacher, divergence)
    (student if side == "student" else teacher)[2, column] = poison
    value, gradient = rows(student, teacher, divergence)
    others = torch.tensor([0, 1, 3])
    assert value[2].isnan()
    assert torch.equal(value[others], clean_value[others])
    assert torch.equal(gradient[others], clean_gradient[others])


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FC00000, -1])
@pytest.mark.parametrize("dtype_", [torch.bfloat16, torch.float16])
def test_no_nan_is_rounded_to_a_number(divergence, bits, dtype_, isa):
    """Also not one whose bits are all set: rounding upwards would carry into the sign."""
    student, teacher = randn(3, 1031, seed=1).to(dtype_), randn(3, 1031, seed=2)
    teacher.view(torch.int32)[1, 40] = bits
    _, gradient = rows(student, teacher, divergence)
    assert gradient[1].isnan().all()
    assert gradient[[0, 2]].isfinite().all()


@pytest.mark.parametrize("kind_", ["bucket", "renormalize", "zero", "uniform", "sampled"])
@pytest.mark.parametrize("poison", [math.nan, INF])
def test_poisoned_rows_of_lists_are_nan_and_alone(kind_, poison, isa):
    """A listed token is poisoned: an unlisted one is out of sight of a renormalised list."""
    student, teacher = randn(4, 1031, seed=1), make_teacher(kind_, 4, 1031)
    clean_value, clean_gradient = rows(student, teacher, fd.ForwardKL())
    student[2, int(teacher.ids[2, 0])] = poison
    value, gradient = rows(student, teacher, fd.ForwardKL())
    others = torch.tensor([0, 1, 3])
    assert value[2].isnan()
    assert torch.equal(value[others], clean_value[others])
    assert torch.equal(gradient[others], clean_gradient[others])


def test_poisoned_hidden_state_stays_in_its_row():
    hidden, weight = randn(4, 8, seed=1), randn(33, 8, seed=2)
    inputs = {"student_hidden": hidden, "student_weight": weight}
    config = {"reduction": "none", "chunk_size": 3}
    clean, clean_gradient, _ = run(fd.linear_distillation_loss, inputs, randn(4, 33), **config)
    hidden[1, 0] = math.nan
    value, gradient, _ = run(fd.linear_distillation_loss, inputs, randn(4, 33), **config)
    others = torch.tensor([0, 2, 3])
    assert value[1].isnan()
    assert torch.equal(value[others], clean[others])
    assert torch.equal(gradient[others], clean_gradient[others])


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_row_without_any_token_is_nan(divergence, side, isa):
    student, teacher = randn(3, 33, seed=1), randn(3, 33, seed=2)
    clean, _ = rows(student, teacher, divergence)
    if side != "teacher":
        student[1] = -INF
    if side != "student":
        teacher[1] = -INF
    value, _ = rows(student, teacher, divergence)
    assert value[1].isnan()
    assert torch.equal(value[[0, 2]], clean[[0, 2]])


def test_uncounted_rows_are_never_looked_at(divergence):
    student, teacher = randn(3, 33, seed=1), randn(3, 33, seed=2)
    student[1] = teacher[1] = math.nan
    mask = torch.tensor([True, False, True])
    value, gradient = rows(student, teacher, divergence, mask=mask)
    clean_value, clean_gradient = rows(
        student[mask], teacher[mask], divergence, upstream=torch.tensor([0.5, 1.5])
    )
    assert torch.equal(value, torch.tensor([clean_value[0], 0.0, clean_value[1]]))
    assert torch.equal(gradient[mask], clean_gradient)
    assert (gradient[1] == 0).all()
