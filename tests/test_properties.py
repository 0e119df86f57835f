"""The laws that hold for every divergence, whatever the logits."""

import math

import pytest
import torch
from cases import MONOTONE, SYMMETRIC, make_teacher, randn, rows, top_k
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdistill as fd

# Logits from nearly equal to far apart, in rows from one token to more than two tiles.
sizes = st.integers(1, 60) | st.sampled_from([1000, 1024, 1025, 2051])
some = given(vocab=sizes, seed=st.integers(0, 10**6), scale=st.sampled_from([0.01, 1.0, 5.0, 30.0]))


def pair(vocab, seed, scale, dtype=torch.float64, rows=3):
    return tuple(randn(rows, vocab, seed=seed + i, scale=scale, dtype=dtype) for i in (0, 1))


def same(actual, expected):
    """The results of `rows`, up to rounding in float64."""
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@some
@settings(max_examples=10)
def test_zero_when_student_equals_teacher(divergence, vocab, seed, scale):
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        student, _ = pair(vocab, seed, scale, dtype)
        value, gradient = rows(student, student.clone(), divergence)
        assert (value >= 0).all()
        assert value.max() <= tolerance
        assert gradient.abs().max() <= 2 * tolerance


@pytest.mark.parametrize("known", [fd.ForwardKL(), fd.ReverseKL(), fd.SymmetricKL(0.3)], ids=repr)
def test_kl_is_exactly_zero_when_student_equals_teacher(known, isa):
    student = randn(4, 2051, scale=5.0)
    value, _ = rows(student, student.clone(), known)
    assert torch.equal(value, torch.zeros(4))


@some
@settings(max_examples=10)
def test_nonnegative(divergence, vocab, seed, scale):
    for dtype in (torch.float32, torch.float64):
        student, teacher = pair(vocab, seed, scale, dtype)
        assert (rows(student, teacher, divergence)[0] >= 0).all()
        near = teacher + randn(3, vocab, seed=seed + 2, scale=1e-4, dtype=dtype)
        assert (rows(near, teacher, divergence)[0] >= 0).all()


@some
@settings(max_examples=10)
def test_gradient_rows_sum_to_zero(divergence, vocab, seed, scale):
    student, teacher = pair(vocab, seed, scale)
    _, gradient = rows(student, teacher, divergence)
    assert gradient.sum(-1).abs().max() <= 1e-12 * (1 + gradient.abs().sum(-1).max())


def test_gradient_rows_of_lists_sum_to_zero(listed_case):
    divergence, tail = listed_case
    teacher = make_teacher(tail, 3, 2051, dtype=torch.float64)
    _, gradient = rows(randn(3, 2051, dtype=torch.float64), teacher, divergence)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(3, dtype=torch.float64))


@some
@settings(max_examples=10)
def test_invariant_to_logit_shift(divergence, vocab, seed, scale):
    student, teacher = pair(vocab, seed, scale)
    shifted = rows(student + 50.0, teacher - 70.0, divergence)
    same(shifted, rows(student, teacher, divergence))


@some
@settings(max_examples=10)
def test_equivariant_to_vocab_permutation(divergence, vocab, seed, scale):
    student, teacher = pair(vocab, seed, scale)
    order = torch.argsort(randn(vocab, seed=seed + 2))
    value, gradient = rows(student, teacher, divergence)
    permuted = rows(student[:, order], teacher[:, order], divergence)
    same(permuted, (value, gradient[:, order]))


@pytest.mark.parametrize("temperature", [0.25, 3.0])
def test_temperature_rescales_logits(divergence, temperature):
    student, teacher = pair(1025, 0, 2.0)
    value, gradient = rows(student, teacher, divergence, temperature=temperature)
    scaled, by_scaled = rows(student / temperature, teacher / temperature, divergence)
    same((value, gradient), (scaled, by_scaled / temperature))


@pytest.mark.parametrize("dtype_", [torch.float32, torch.float64])
def test_padding_token_with_minus_inf_changes_nothing(divergence, dtype_, isa):
    student, teacher = pair(1030, 0, 2.0, dtype_)
    value, gradient = rows(student, teacher, divergence)
    places = torch.cat([torch.arange(7), torch.arange(9, 1000), torch.arange(1024, 1056)])
    wide = torch.full((2, 3, 1100), -math.inf, dtype=dtype_)  # whole vectors of padding at the end
    wide[..., places] = torch.stack([student, teacher])
    padded_value, padded_gradient = rows(*wide, divergence)
    torch.testing.assert_close(padded_value, value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(padded_gradient[:, places], gradient, rtol=1e-6, atol=1e-6)
    padding = torch.ones(1100, dtype=torch.bool)
    padding[places] = False
    assert (padded_gradient[:, padding] == 0).all()


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_valid_vocab_is_slicing(divergence, side):
    student, teacher = pair(1040, 0, 2.0, torch.float32)
    value, gradient = rows(student[:, :1029], teacher[:, :1029], divergence)
    on_teacher = fd.TeacherLogits(teacher, valid_vocab=None if side == "student" else 1029)
    valid = {} if side == "teacher" else {"student_valid_vocab": 1029}
    cut_value, cut_gradient = rows(student, on_teacher, divergence, **valid)
    assert torch.equal(cut_value, value)
    assert torch.equal(cut_gradient[:, :1029], gradient)
    assert (cut_gradient[:, 1029:] == 0).all()


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "uniform"])
def test_valid_vocab_is_slicing_for_lists(tail):
    student = randn(3, 40)
    teacher = make_teacher(tail, 3, 33)
    value, gradient = rows(student[:, :33], teacher, fd.ForwardKL())
    cut_value, cut_gradient = rows(student, teacher, fd.ForwardKL(), student_valid_vocab=33)
    assert torch.equal(cut_value, value)
    assert torch.equal(cut_gradient[:, :33], gradient)
    assert (cut_gradient[:, 33:] == 0).all()


@pytest.mark.parametrize("known", SYMMETRIC, ids=repr)
def test_symmetric(known):
    student, teacher = pair(33, 0, 3.0)
    there, back = rows(student, teacher, known)[0], rows(teacher, student, known)[0]
    torch.testing.assert_close(there, back)


@some
@settings(max_examples=20)
def test_bounds(vocab, seed, scale):
    student, teacher = pair(vocab, seed, scale, torch.float32)
    rounding = 1e-6
    for known, bound in (
        (fd.JensenShannon(0.5), math.log(2)),
        (fd.SkewReverseKL(0.1), -math.log(0.1)),
        (fd.SkewForwardKL(0.3), -math.log(0.3)),
        (fd.TotalVariation(), 1.0),
    ):
        assert rows(student, teacher, known)[0].max() <= bound + rounding
    kl, variation = (
        rows(student, teacher, known)[0] for known in (fd.ForwardKL(), fd.TotalVariation())
    )
    assert (variation <= (kl / 2).sqrt() + rounding).all()  # Pinsker


def test_bounds_are_reached_by_disjoint_supports():
    student = torch.tensor([[80.0, 0.0]], dtype=torch.float64)
    for known, bound in (
        (fd.JensenShannon(0.5), math.log(2)),
        (fd.SkewReverseKL(0.1), -math.log(0.1)),
        (fd.TotalVariation(), 1.0),
    ):
        value, _ = rows(student, student.flip(-1), known)
        torch.testing.assert_close(value, torch.full_like(value, bound))


def test_negative_log_acceptance_is_minus_log_of_one_minus_total_variation():
    student, teacher = pair(1025, 0, 3.0)
    value, gradient = rows(student, teacher, fd.NegativeLogAcceptance())
    variation, by_variation = rows(student, teacher, fd.TotalVariation())
    acceptance = 1 - variation
    same((value, gradient), (-acceptance.log(), by_variation / acceptance.unsqueeze(-1)))


@pytest.mark.parametrize(
    ("family", "limit"),
    [
        (fd.Renyi(1 + 1e-5), fd.ForwardKL()),
        (fd.Renyi(1 - 1e-5), fd.ForwardKL()),
        (fd.AlphaBeta(1.0, 1e-5), fd.ForwardKL()),
        (fd.AlphaBeta(1e-5, 1.0), fd.ReverseKL()),
        (fd.SkewForwardKL(1e-5), fd.ForwardKL()),
        (fd.SkewReverseKL(1e-5), fd.ReverseKL()),
        (fd.SymmetricKL(1.0), fd.ForwardKL()),
        (fd.SymmetricKL(0.0), fd.ReverseKL()),
    ],
    ids=repr,
)
def test_limit(family, limit):
    student, teacher = pair(33, 0, 0.7)
    for near, exact in zip(
        rows(student, teacher, family), rows(student, teacher, limit), strict=True
    ):
        torch.testing.assert_close(near, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("beta", "limit"), [(1e-5, fd.ForwardKL()), (1 - 1e-5, fd.ReverseKL())], ids=repr
)
def test_jensen_shannon_divided_by_its_small_weight_tends_to_a_kl(beta, limit):
    student, teacher = pair(33, 0, 0.7)
    small = min(beta, 1 - beta)
    near = rows(student, teacher, fd.JensenShannon(beta))
    for value, exact in zip(near, rows(student, teacher, limit), strict=True):
        torch.testing.assert_close(value / small, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("t", [0.3, 0.8])
def test_renyi_gradient_is_that_of_taid(t):
    """q - softmax of the interpolated logits, arXiv:2501.16937, with the target held fixed."""
    student, teacher = pair(33, 0, 2.0)
    upstream = torch.ones(3, dtype=torch.float64)
    _, gradient = rows(student, teacher, fd.Renyi(t), upstream=upstream)
    target = torch.softmax((1 - t) * student + t * teacher, -1)
    torch.testing.assert_close(gradient, torch.softmax(student, -1) - target)


@pytest.mark.parametrize("monotone", MONOTONE, ids=repr)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 20))
@settings(max_examples=10)
def test_merging_the_tail_cannot_increase_the_loss(monotone, seed, k):
    student, teacher = pair(20, seed, 2.0)
    listed = top_k(teacher.log_softmax(-1), k, seed=seed)
    merged, _ = rows(student, listed, monotone)
    dense, _ = rows(student, teacher, monotone)
    assert (merged <= dense * (1 + 1e-12) + 1e-13).all()


@pytest.mark.parametrize("dtype_", [torch.float32, torch.bfloat16])
def test_isas_agree(case, dtype_):
    divergence, kind = case
    student = randn(3, 1031, scale=2.0, dtype=dtype_)
    teacher = make_teacher(kind, 3, 1031, dtype=dtype_)
    before, results = fd._C.current_isa(), []
    for name in fd._C.available_isas():
        fd._C.select_isa(name)
        results.append(rows(student, teacher, divergence))
    fd._C.select_isa(before)
    for value, gradient in results[1:]:
        torch.testing.assert_close(value, results[0][0], rtol=2e-6, atol=1e-6)
        tolerance = 1e-6 + 2 * torch.finfo(dtype_).eps
        torch.testing.assert_close(gradient, results[0][1], rtol=tolerance, atol=1e-6)
