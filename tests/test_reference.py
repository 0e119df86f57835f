"""The reference formulas against constants worked out by hand and against torch."""

import math

import pytest
import torch
from cases import DIVERGENCES, KINKED, TAILS, randn, top_k
from torch.nn import functional as F

import fastdistill as fd
from fastdistill import reference

log = math.log

# Of p = (1/2, 1/2) and q = (1/4, 3/4).
CONSTANTS = {
    fd.ForwardKL(): log(4 / 3) / 2,
    fd.ReverseKL(): 0.75 * log(3) - log(2),
    fd.SymmetricKL(0.3): 0.3 * log(4 / 3) / 2 + 0.7 * (0.75 * log(3) - log(2)),
    # m = p/4 + 3q/4 = (5/16, 11/16)
    fd.JensenShannon(0.25): 0.125 * log(64 / 55) + 0.75 * (log(4 / 5) + 3 * log(12 / 11)) / 4,
    fd.SkewForwardKL(0.25): log(64 / 55) / 2,
    # m = q/4 + 3p/4 = (7/16, 9/16)
    fd.SkewReverseKL(0.25): (log(4 / 7) + 3 * log(4 / 3)) / 4,
    fd.TotalVariation(): 1 / 4,
    fd.NegativeLogAcceptance(): -log(3 / 4),
    fd.Renyi(0.5): -2 * log((1 + math.sqrt(3)) / math.sqrt(8)),
    fd.Renyi(2.0): log(4 / 3),
    fd.AlphaBeta(1.0, 1.0): 1 / 16,
    fd.AlphaBeta(2.0, 1.0): 1 / 32,
}
LOG_P = torch.tensor([1 / 2, 1 / 2], dtype=torch.float64).log()
LOG_Q = torch.tensor([1 / 4, 3 / 4], dtype=torch.float64).log()


@pytest.mark.parametrize("known", CONSTANTS, ids=repr)
def test_value_worked_out_by_hand(known):
    assert float(known(LOG_P, LOG_Q)) == pytest.approx(CONSTANTS[known], rel=1e-14)


def test_every_class_has_a_constant_and_a_case():
    assert {type(d) for d in CONSTANTS} == set(fd.divergences.ALL)
    assert {type(d) for d in DIVERGENCES} == set(fd.divergences.ALL)


# Student q = (1/2, 1/4, 1/8, 1/8); the teacher lists id 0 with 1/4 and id 2 with 1/8.
TAIL_CONSTANTS = {
    # p = (1/4, 1/8, tail 5/8) against q = (1/2, 1/8, 3/8)
    "bucket": log(1 / 2) / 4 + 5 / 8 * log(5 / 3),
    # p = (2/3, 1/3) against q = (4/5, 1/5)
    "renormalize": 2 / 3 * log(5 / 6) + log(5 / 3) / 3,
    "zero": log(1 / 2) / 4,
    # p = (1/4, 5/16, 1/8, 5/16)
    "uniform": log(1 / 2) / 4 + 5 / 16 * (log(5 / 4) + log(5 / 2)),
}


@pytest.mark.parametrize("tail", TAILS)
def test_tail_worked_out_by_hand(tail):
    student = torch.tensor([[1 / 2, 1 / 4, 1 / 8, 1 / 8]], dtype=torch.float64).log()
    log_probs = torch.tensor([[1 / 8, 1.0, 1 / 4]], dtype=torch.float64).log()
    teacher = fd.TopKTeacher(torch.tensor([[2, -1, 0]]), log_probs, tail=tail)
    loss = reference.distillation_loss(student, teacher)
    assert float(loss) == pytest.approx(TAIL_CONSTANTS[tail], rel=1e-14)


def test_forward_kl_is_kl_div():
    log_p, log_q = (randn(5, 9, seed=s, dtype=torch.float64).log_softmax(-1) for s in (0, 1))
    expected = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(fd.ForwardKL()(log_p, log_q), expected)
    torch.testing.assert_close(fd.ReverseKL()(log_q, log_p), expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_hard_loss_is_cross_entropy(temperature):
    student = randn(6, 9, dtype=torch.float64)
    labels = torch.tensor([0, 8, -100, 3, 3, -100])
    loss = reference.distillation_loss(
        student, student, labels, soft_weight=0.0, hard_weight=2.0, temperature=temperature
    )
    torch.testing.assert_close(loss, 2 * F.cross_entropy(student, labels))


def test_hinton_scaling_multiplies_by_temperature_squared():
    student, teacher = randn(4, 9, seed=0), randn(4, 9, seed=1)
    plain = reference.distillation_loss(student, teacher, temperature=3.0)
    scaled = reference.distillation_loss(
        student, teacher, temperature=3.0, scale_by_temperature_squared=True
    )
    torch.testing.assert_close(scaled, 9 * plain)


def test_softcap_and_scale():
    student, teacher = randn(4, 9, seed=0), randn(4, 9, seed=1)
    loss = reference.distillation_loss(
        student,
        fd.TeacherLogits(teacher, softcap=3.0, scale=0.5),
        student_softcap=5.0,
        student_scale=2.0,
    )
    expected = reference.distillation_loss(
        5 * torch.tanh(2 * student / 5), 3 * torch.tanh(0.5 * teacher / 3)
    )
    torch.testing.assert_close(loss, expected)


def test_listing_the_whole_vocabulary_is_the_dense_loss(listed_case):
    divergence, tail = listed_case
    student, teacher = (randn(3, 9, seed=s, dtype=torch.float64) for s in (0, 1))
    listed = top_k(teacher.log_softmax(-1), 9, tail=tail)
    loss = reference.distillation_loss(student, listed, divergence=divergence)
    torch.testing.assert_close(
        loss, reference.distillation_loss(student, teacher, divergence=divergence)
    )


def test_autograd_of_the_formula_is_its_finite_difference(divergence):
    student, teacher = (randn(2, 5, seed=s, dtype=torch.float64) for s in (0, 1))
    if isinstance(divergence, KINKED):
        gap = (student.log_softmax(-1) - teacher.log_softmax(-1)).abs()
        assert gap.min() > 1e-3  # away from the kink
    assert torch.autograd.gradcheck(
        lambda z: reference.distillation_loss(z, teacher, divergence=divergence),
        student.requires_grad_(),
    )


def test_reference_has_no_gradient_for_the_teacher():
    teacher = randn(2, 5, seed=1).requires_grad_()
    loss = reference.distillation_loss(randn(2, 5).requires_grad_(), teacher)
    loss.backward()
    assert teacher.grad is None
