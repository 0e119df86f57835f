"""Metrics against float64 formulas, and what a teacher cannot tell."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fastdistill as fd

T, N, V = 1.5, 9, 2500
DENSE = {
    "forward_kl": fd.ForwardKL(),
    "reverse_kl": fd.ReverseKL(),
    "acceptance_rate": lambda p, q: 1 - fd.TotalVariation()(p, q),
    "top1_agreement": lambda p, q: (p.argmax(-1) == q.argmax(-1)).double(),
    "teacher_entropy": lambda p, q: -(p.exp() * p).sum(-1),
    "student_entropy": lambda p, q: -(q.exp() * q).sum(-1),
}


@pytest.fixture
def batch():
    torch.manual_seed(3)
    student = torch.randn(N, V) * 2
    teacher = student + torch.randn(N, V) * 1.5
    weights, mask = torch.rand(N), torch.rand(N) > 0.3
    return student, teacher, weights, mask


def average(rows, weights, mask, divisor=None):
    weights = torch.where(mask, weights, 0.0).double()
    return (weights * rows).sum() / (weights.sum() if divisor is None else divisor)


@pytest.mark.parametrize("num_items", [None, 7.5])
@pytest.mark.parametrize("loss_divergence", [fd.ForwardKL(), fd.JensenShannon(0.3), fd.Renyi(2.0)])
def test_dense_metrics_match_float64(batch, loss_divergence, num_items):
    student, teacher, weights, mask = batch
    loss, metrics = fd.distillation_loss(
        student, teacher, divergence=loss_divergence, temperature=T, weights=weights, mask=mask,
        num_items=num_items, soft_weight=0.5, return_metrics=True,
    )  # fmt: skip
    log_p = (teacher.double() / T).log_softmax(-1)
    log_q = (student.double() / T).log_softmax(-1)
    for name, formula in DENSE.items():
        expected = average(formula(log_p, log_q), weights, mask, num_items)
        torch.testing.assert_close(getattr(metrics, name), expected, rtol=1e-5, atol=1e-7)
    expected = average(loss_divergence(log_p, log_q), weights, mask, num_items)
    torch.testing.assert_close(metrics.soft_loss, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(loss.double(), 0.5 * metrics.soft_loss, rtol=1e-6, atol=1e-7)
    assert metrics.counted == mask.sum()
    assert metrics.hard_loss is None
    assert metrics.teacher_mass is None
    assert metrics.student_mass is None


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_what_is_nan_is_never_accepted(batch, side, isa):
    student, teacher, *_ = batch
    for name, logits in (("student", student), ("teacher", teacher)):
        if side in (name, "both"):
            logits[1, 2100] = torch.nan
    _, metrics = fd.distillation_loss(student, teacher, return_metrics=True)
    for name in DENSE:
        known = name == {"student": "teacher", "teacher": "student"}.get(side, "") + "_entropy"
        assert bool(getattr(metrics, name).isnan()) != known, name


@pytest.mark.parametrize("tail", fd.teachers.TAILS)
def test_listed_metrics_match_float64(batch, tail):
    student, teacher, weights, mask = batch
    log_probs, ids = (teacher / T).log_softmax(-1).topk(20)
    listed = fd.TopKTeacher(ids, log_probs, tail=tail, temperature=T)
    _, metrics = fd.distillation_loss(
        student, listed, temperature=T, weights=weights, mask=mask, return_metrics=True
    )
    log_q = (student.double() / T).log_softmax(-1)
    for name, rows in {
        "teacher_mass": log_probs.double().exp().sum(-1),
        "student_mass": log_q.gather(-1, ids).exp().sum(-1),
        "student_entropy": -(log_q.exp() * log_q).sum(-1),
    }.items():
        expected = average(rows, weights, mask)
        torch.testing.assert_close(getattr(metrics, name), expected, rtol=1e-5, atol=1e-6)
    unknown = DENSE.keys() - {"student_entropy"}
    assert all(getattr(metrics, name) is None for name in unknown)


def test_mass_of_a_retempered_list_is_unknown(batch):
    student, teacher, *_ = batch
    log_probs, ids = teacher.log_softmax(-1).topk(20)
    listed = fd.TopKTeacher(ids, log_probs, tail="renormalize")
    _, metrics = fd.distillation_loss(student, listed, temperature=T, return_metrics=True)
    assert metrics.teacher_mass is None
    assert 0 < metrics.student_mass < 1


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_linear_and_logits_metrics_agree(reduction):
    torch.manual_seed(5)
    hidden, weight = torch.randn(N, 8, requires_grad=True), torch.randn(50, 8)
    teacher, labels = torch.randn(N, 50), torch.randint(0, 50, (N,))
    config = {"hard_weight": 0.3, "reduction": reduction, "return_metrics": True}
    a, linear = fd.linear_distillation_loss(hidden, weight, teacher, labels, chunk_size=4, **config)
    b, logits = fd.distillation_loss(hidden @ weight.T, teacher, labels, **config)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for field in dataclasses.fields(fd.Metrics):
        left, right = getattr(linear, field.name), getattr(logits, field.name)
        assert (left is None) == (right is None)
        if left is not None:
            assert not left.requires_grad
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_metrics_do_not_change_loss_or_gradient():
    torch.manual_seed(6)
    teacher = torch.randn(N, V)
    results = []
    for with_metrics in (False, True):
        torch.manual_seed(7)
        student = torch.randn(N, V, requires_grad=True)
        result = fd.distillation_loss(student, teacher, return_metrics=with_metrics)
        loss = result[0] if with_metrics else result
        loss.backward()
        results.append((loss.detach(), student.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_first_of_tied_maxima_counts():
    logits = torch.zeros(2, 1500)
    logits[0, [3, 1400]] = 2.0
    other = torch.zeros(2, 1500)
    other[0, 3] = 1.0
    _, metrics = fd.distillation_loss(logits, other, return_metrics=True)
    assert metrics.top1_agreement == 1.0
    other[0, 3], other[0, 1400] = 0.0, 1.0
    _, metrics = fd.distillation_loss(logits, other, return_metrics=True)
    assert metrics.top1_agreement == 0.5
