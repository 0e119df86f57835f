"""Teachers of which only the most likely tokens are known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import (
    DIVERGENCES,
    TAILS,
    accepts,
    assert_not_worse,
    randn,
    rows,
    top_k,
    truth,
)

import fastdistill as fd
from fastdistill import reference


def same(actual, expected, **tolerance):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def pair(vocab=33, dtype=torch.float64):
    return randn(3, vocab, scale=2.0, dtype=dtype), randn(3, vocab, seed=1, scale=2.0, dtype=dtype)


def test_listing_the_whole_vocabulary_is_the_dense_loss(listed_case):
    divergence, tail = listed_case
    student, teacher = pair(1031)
    listed = top_k(teacher.log_softmax(-1), 1031, tail=tail)
    # The list reaches the kernel as log-probabilities that are rounded at their own magnitude.
    same(
        rows(student, listed, divergence), rows(student, teacher, divergence), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("start", [0, 512])
def test_a_tile_of_impossible_tokens_changes_nothing(divergence, tail, start, isa):
    ids = torch.tensor([[1100, 1400, 1699], [1024, 1025, 1026]])
    teacher = top_k(randn(2, 3, seed=1).log_softmax(-1) - 0.5, 3, tail=tail)
    student = randn(2, 1700, scale=2.0)
    student[:, start : start + 512] = -math.inf
    kept = torch.cat([student[:, :start], student[:, start + 512 :]], -1)
    value, gradient = rows(student, replace(teacher, ids=ids), divergence)
    expected = rows(kept, replace(teacher, ids=ids - 512), divergence)
    without = torch.cat([gradient[:, :start], gradient[:, start + 512 :]], -1)
    same((value, without), expected, rtol=1e-5, atol=1e-6)
    assert (gradient[:, start : start + 512] == 0).all()


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("hard_weight", [0.0, 0.4])
def test_only_some_tiles_have_listed_tokens(listed_case, dtype, reduction, hard_weight, isa):
    """The second of three whole tiles and one that is not; one row rises after its first tile.

    By more than an exp can hold. The sum makes its gradient in the forward pass.
    """
    divergence, tail = listed_case
    student = randn(2, 1700, scale=2.0)
    student[0, :512] -= 200.0
    ids = torch.tensor([[600, 1000, 513], [512, 701, 1023]])
    teacher = randn(2, 1700, seed=1, scale=2.0, dtype=torch.float64).scatter(-1, ids, 9.0)
    log_p = teacher.log_softmax(-1)
    wide = torch.promote_types(dtype, torch.float32)
    assert_not_worse(
        fd.distillation_loss,
        {"student_logits": student.to(dtype)},
        fd.TopKTeacher(ids, log_p.gather(-1, ids).to(wide), tail=tail),
        torch.tensor([513, 1699]) if hard_weight else None,
        divergence=divergence,
        hard_weight=hard_weight,
        reduction=reduction,
    )


def test_bucket_is_exact_on_listed_ids_and_on_the_tail_mass():
    """ForwardKL: the gradient by a listed logit is q - p, that by the others sums to the rest."""
    student, teacher = pair()
    p, q = teacher.softmax(-1), student.softmax(-1)
    listed = top_k(teacher.log_softmax(-1), 5)
    _, gradient = rows(student, listed, upstream=torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(
        gradient.gather(-1, listed.ids), (q - p).gather(-1, listed.ids), rtol=1e-10, atol=1e-12
    )
    unlisted = torch.ones_like(q).scatter(-1, listed.ids, 0.0)
    torch.testing.assert_close((gradient * unlisted).sum(-1), ((q - p) * unlisted).sum(-1))
    share = (gradient / q)[unlisted.bool()].view(3, -1)  # the tail moves as one
    torch.testing.assert_close(share, share[:, :1].expand_as(share))


def test_renormalize_has_no_gradient_outside_the_list(divergence):
    student, teacher = pair(1031)
    listed = top_k(teacher.log_softmax(-1), 5, tail="renormalize")
    value, gradient = rows(student, listed, divergence)
    dense = rows(student.gather(-1, listed.ids), teacher.gather(-1, listed.ids), divergence)
    same((value, gradient.gather(-1, listed.ids)), dense, rtol=1e-9, atol=1e-12)
    assert (gradient.scatter(-1, listed.ids, 0.0) == 0).all()


SPARSE_REVERSE_KL = [
    (divergence, tail)
    for divergence in DIVERGENCES
    for tail in TAILS
    if divergence.needs_teacher_support
]


TEACHER = torch.tensor([[0.4, 0.25, 0.15, 0.1, 0.06, 0.04]], dtype=torch.float64)
LISTED_MASS = 0.8  # of the three largest


def minimise(loss_of):
    """The student's probabilities at the minimum of a loss, started from the teacher."""
    student = TEACHER.log().requires_grad_()
    optimiser = torch.optim.LBFGS([student], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = loss_of(student)
        loss.backward()
        return loss

    optimiser.step(closure)
    return student.detach().softmax(-1)


def test_truncated_reverse_kl_collapses_to_a_fraction_of_the_mass():
    """What the next test is about: sum q log(q / p) over the list alone is least at S / e."""

    def truncated(student):
        log_q = student.log_softmax(-1)[:, :3]
        return (log_q.exp() * (log_q - TEACHER[:, :3].log())).sum()

    reached = minimise(truncated)[:, :3].sum()
    assert float(reached) == pytest.approx(LISTED_MASS / math.e, rel=1e-3)


@pytest.mark.parametrize(("reverse", "tail"), SPARSE_REVERSE_KL, ids=str)
def test_truncated_reverse_kl_collapse_is_unreachable(reverse, tail):
    listed = top_k(TEACHER.log(), 3, tail=tail)
    if not accepts(tail, reverse):
        with pytest.raises(ValueError, match="infinite where the teacher is zero"):
            fd.distillation_loss(TEACHER.log(), listed, divergence=reverse)
        return
    q = minimise(lambda z: fd.distillation_loss(z, listed, divergence=reverse))
    reached = q.gather(-1, listed.ids)
    assert reached.sum() > 0.9 * LISTED_MASS
    expected = listed.log_probs.softmax(-1)
    torch.testing.assert_close(reached / reached.sum(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("smooth", [fd.ForwardKL(), fd.ReverseKL(), fd.JensenShannon()], ids=repr)
def test_tail_of_tiny_mass_is_accurate(smooth, isa):
    """1 - sum of float32 probabilities would be wrong by half at a tail of 1e-7."""
    student, teacher = randn(4, 1031, seed=2), randn(4, 1031, seed=3)
    student[:, :3] += 22.0  # leaves about 1e-7 to the others
    teacher[:, :3] += 21.0
    log_p = teacher.double().log_softmax(-1)
    listed = top_k(log_p.float(), 3, tail_log_prob=log_p[:, 3:].logsumexp(-1))
    assert student.double().softmax(-1)[:, 3:].sum(-1).max() < 1e-6
    upstream = torch.ones(4)
    value, gradient = rows(student, listed, smooth, upstream=upstream)
    inputs = {"student_logits": student}
    exact_value, exact_gradient = truth(
        reference.distillation_loss, inputs, listed, divergence=smooth, reduction="none",
        upstream=upstream.double(),
    )  # fmt: skip
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-4, atol=2e-7)
    tail, exact_tail = gradient[:, 3:].double(), exact_gradient[:, 3:]
    assert exact_tail.abs().max() > 0
    torch.testing.assert_close(
        tail, exact_tail, rtol=1e-3, atol=1e-3 * float(exact_tail.abs().max())
    )


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("mark", ["id", "log_prob", "both"])
def test_empty_slots_change_nothing_wherever_they_are(tail, mark):
    student, teacher = pair(1031)
    listed = top_k(teacher.log_softmax(-1), 4, tail=tail)
    ids = torch.full((3, 9), -1)
    log_probs = torch.full((3, 9), -math.inf, dtype=torch.float64)
    if mark == "id":
        log_probs.fill_(-0.3)  # whatever stands beside an id of -1
    if mark == "log_prob":
        ids.fill_(2)  # an empty slot lists no token, so it repeats none
    for slots in ([0, 1, 2, 3], [5, 2, 8, 7]):
        own_ids, own_log_probs = ids.clone(), log_probs.clone()
        own_ids[:, slots], own_log_probs[:, slots] = listed.ids, listed.log_probs
        padded = replace(listed, ids=own_ids, log_probs=own_log_probs)
        same(rows(student, padded), rows(student, listed))


@pytest.mark.parametrize("tail", TAILS)
def test_list_without_any_entry(tail):
    """Nothing is known: bucket and renormalize have nothing to say; uniform is uniform."""
    student, _ = pair()
    ids = torch.full((3, 4), -1)
    empty = fd.TopKTeacher(ids, torch.full((3, 4), -math.inf, dtype=torch.float64), tail=tail)
    value, gradient = rows(student, empty)
    if tail == "uniform":
        same((value, gradient), rows(student, torch.zeros_like(student)))
    else:
        torch.testing.assert_close(value, torch.zeros_like(value))
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("tail", TAILS)
def test_order_of_the_list_does_not_matter(tail):
    student, teacher = pair(2051)
    log_p = teacher.log_softmax(-1)
    results = [rows(student, top_k(log_p, 40, seed=s, tail=tail)) for s in (0, 1)]
    same(*results, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("integer", [torch.int32, torch.int16, torch.uint8])
def test_ids_of_any_integer_type(integer):
    student, teacher = pair()
    listed = top_k(teacher.log_softmax(-1), 5)
    same(rows(student, replace(listed, ids=listed.ids.to(integer))), rows(student, listed))


def test_numpy_arrays_are_shared():
    student, teacher = pair()
    listed = top_k(teacher.log_softmax(-1), 5)
    ids, log_probs = listed.ids.numpy(), listed.log_probs.numpy()
    tail = np.full(3, -2.0)
    from_numpy = fd.TopKTeacher(ids, log_probs, tail_log_prob=tail)
    same(
        rows(student, from_numpy), rows(student, replace(listed, tail_log_prob=torch.tensor(tail)))
    )
    for array, tensor in ((ids, from_numpy.ids), (log_probs, from_numpy.log_probs)):
        assert tensor.data_ptr() == array.ctypes.data
    sampled = fd.SampledTeacher(ids, np.exp(log_probs))
    assert sampled.ids.data_ptr() == ids.ctypes.data


@pytest.mark.parametrize("stored", [torch.float64, torch.bfloat16])
def test_given_tail_mass_is_used(listed_case, stored):
    """The rest need not be 1 - sum: log-probabilities may have been stored with few bits."""
    divergence, tail = listed_case
    student, teacher = pair()
    listed = top_k(teacher.log_softmax(-1), 5, tail=tail)
    rest = fd.teachers.tail_mass(listed.log_probs)
    given = replace(listed, log_probs=listed.log_probs.to(stored), tail_log_prob=rest)
    exact = truth(
        reference.distillation_loss, {"student_logits": student}, given, divergence=divergence,
        reduction="none",
    )  # fmt: skip
    same(rows(student, given, divergence), exact)


@pytest.mark.parametrize("tail", ["bucket", "uniform"])
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_retempering_is_exact_when_the_tail_mass_is_given(tail, temperature):
    """A list at T = 1 with the tail mass at T is the list that the teacher gives at T."""
    student, teacher = pair(1031)
    at_one, at_t = teacher.log_softmax(-1), (teacher / temperature).log_softmax(-1)
    listed = top_k(at_one, 5, tail=tail)
    rest = at_t.scatter(-1, listed.ids, -math.inf).logsumexp(-1)
    direct = replace(listed, log_probs=at_t.gather(-1, listed.ids), temperature=temperature)
    same(
        rows(student, replace(listed, tail_log_prob=rest), temperature=temperature),
        rows(student, direct, temperature=temperature),
    )


def test_retempering_the_whole_vocabulary_is_the_dense_loss(divergence):
    student, teacher = pair()
    listed = top_k(teacher.log_softmax(-1), 33, tail_log_prob=torch.full((3,), -math.inf))
    same(
        rows(student, listed, divergence, temperature=2.0),
        rows(student, teacher, divergence, temperature=2.0),
    )


def test_retempering_a_renormalized_list_needs_no_tail(divergence):
    student, teacher = pair()
    listed = top_k(teacher.log_softmax(-1), 5, tail="renormalize")
    value, gradient = rows(student, listed, divergence, temperature=2.0)
    own, other = student.gather(-1, listed.ids), teacher.gather(-1, listed.ids)
    dense = rows(own, other, divergence, temperature=2.0)
    same((value, gradient.gather(-1, listed.ids)), dense)


def test_float32_list_that_sums_to_more_than_one(isa):
    """Rounding can leave no mass, or less than none, to the tail: the loss stays finite."""
    student = randn(3, 33)
    log_probs = torch.tensor([0.7, 0.2, 0.1 + 1e-6]).log().expand(3, 3)
    assert log_probs.double().exp().sum(-1).min() > 1
    teacher = fd.TopKTeacher(torch.tensor([[3, 1, 2]]).expand(3, 3), log_probs)
    for divergence in (fd.ForwardKL(), fd.ReverseKL(), fd.JensenShannon()):
        value, gradient = rows(student, teacher, divergence)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
