"""Teachers of which only a sample of tokens is known."""

import itertools
import math

import pytest
import torch
from cases import make_teacher, randn, rows

import fastdistill as fd


def test_sampled_teacher_without_any_entry():
    student = randn(3, 33, scale=2.0, dtype=torch.float64)
    value, gradient = rows(student, fd.SampledTeacher(torch.full((3, 2), -1), torch.ones(3, 2)))
    torch.testing.assert_close(value, torch.zeros_like(value))
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_sampled_teacher_is_unbiased():
    """The mean gradient over all draws, each with its probability, is the dense gradient."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    student = randn(1, 4, dtype=torch.float64)
    _, dense = rows(student, p.log().unsqueeze(0))
    draws, mean, total = 3, torch.zeros(1, 4, dtype=torch.float64), 0.0
    for drawn in itertools.product(range(4), repeat=draws):
        ids, counts = torch.tensor(drawn).unique(return_counts=True)
        sample = fd.SampledTeacher(ids.unsqueeze(0), counts.unsqueeze(0).double() / draws)
        probability = float(p[list(drawn)].prod())
        mean += probability * rows(student, sample)[1]
        total += probability
    assert total == pytest.approx(1.0)
    torch.testing.assert_close(mean, dense)


def test_sampled_teacher_of_an_uncounted_token_is_never_looked_at():
    weights = torch.full((3, 4), 0.25)
    weights[1] = math.nan
    teacher = fd.SampledTeacher(torch.arange(12).view(3, 4), weights)
    mask = torch.tensor([True, False, True])
    logits = randn(3, 20)
    loss = fd.distillation_loss(logits, teacher, mask=mask)
    part = fd.SampledTeacher(teacher.ids[mask], weights[mask])
    torch.testing.assert_close(loss, fd.distillation_loss(logits[mask], part))


def test_sampled_teacher_reports_the_cross_entropy():
    student = randn(3, 33, scale=2.0, dtype=torch.float64)
    teacher = make_teacher("sampled", 3, 33, dtype=torch.float64)
    value, gradient = rows(student, teacher, upstream=torch.ones(3, dtype=torch.float64))
    log_q = student.log_softmax(-1)
    torch.testing.assert_close(value, -(teacher.weights * log_q.gather(-1, teacher.ids)).sum(-1))
    total = teacher.weights.sum(-1, keepdim=True)
    expected = total * log_q.exp()
    torch.testing.assert_close(gradient, expected.scatter_add(-1, teacher.ids, -teacher.weights))
