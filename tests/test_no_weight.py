"""What has no weight has no part in a loss or its gradient, not even where it is infinite."""

import math

import pytest
import torch
from cases import make_teacher, randn, rows

import fastdistill as fd

INF = math.inf


@pytest.mark.parametrize("kind_", ["logits", "bucket", "renormalize", "uniform"])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_an_infinite_divergence_without_weight_has_no_part(kind_, reduction, divergence, isa):
    """Neither in the loss nor in the gradient, whether or not metrics ask for it."""
    student, teacher = randn(3, 1031, seed=1), make_teacher(kind_, 3, 1031)
    listed = 7 if kind_ == "logits" else int(teacher.ids[1, 0])
    student[1, listed] = -INF  # q = 0 < p
    if kind_ == "logits":
        teacher.logits[1, 9] = -INF  # p = 0 < q
    leaf = student.requires_grad_()
    config = {"soft_weight": 0.0, "hard_weight": 1.0, "divergence": divergence}
    found = []
    for with_metrics in (False, True):
        loss = fd.distillation_loss(
            leaf, teacher, torch.tensor([1, 2, 3]), reduction=reduction,
            return_metrics=with_metrics, **config,
        )  # fmt: skip
        loss = loss[0] if with_metrics else loss
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaf)))
    expected = torch.nn.functional.cross_entropy(leaf, torch.tensor([1, 2, 3]), reduction="sum")
    torch.testing.assert_close(found[0][0].sum(), expected.detach(), rtol=1e-6, atol=1e-5)
    for without, with_ in zip(*found, strict=True):
        torch.testing.assert_close(with_, without)
        assert with_.isfinite().all()


def test_a_token_without_weight_has_no_part(divergence):
    student, teacher = randn(3, 33, seed=1), randn(3, 33, seed=2)
    student[1, 7] = teacher[1, 9] = -INF
    weights = torch.tensor([1.0, 0.0, 2.0])
    config = {"divergence": divergence, "reduction": "mean"}
    value, gradient = rows(student, teacher, weights=weights, **config)
    others = torch.tensor([0, 2])
    expected, by_others = rows(student[others], teacher[others], weights=weights[others], **config)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[others], by_others)
    assert (gradient[1] == 0).all()
