"""Every gradient is the finite difference of the value, in float64."""

import pytest
import torch
from cases import CLASSES, KINKED, error, make_teacher, randn, run, truth
from torch.autograd import gradcheck

import fastdistill as fd
from fastdistill import reference

OPTIONS = {
    "hard_weight": 0.6,
    "student_softcap": 4.0,
    "student_scale": 0.8,
    "weights": torch.tensor([0.5, 2.0, 1.0]),
}


def away_from_ties(divergence, student, teacher, temperature=1.0):
    """Finite differences mean something only where p and q do not cross."""
    if isinstance(divergence, KINKED) and isinstance(teacher, fd.TeacherLogits):
        log_q = torch.log_softmax(student / temperature, -1)
        log_p = torch.log_softmax(teacher.logits / temperature, -1)
        assert (log_p - log_q).abs().min() > 1e-4


def test_logits(case):
    divergence, kind = case
    student = randn(3, 7, scale=2.0, dtype=torch.float64)
    teacher = make_teacher(kind, 3, 7, dtype=torch.float64)
    away_from_ties(divergence, student, teacher)
    assert gradcheck(
        lambda z: fd.distillation_loss(z, teacher, divergence=divergence, reduction="none"),
        student.requires_grad_(),
    )


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_logits_with_all_options(case, reduction):
    divergence, kind = case
    temperature = 1.0 if kind == "sampled" else 1.7
    student = randn(3, 7, seed=5, scale=2.0, dtype=torch.float64)
    teacher = make_teacher(kind, 3, 7, temperature=temperature, dtype=torch.float64)
    labels = torch.tensor([6, 0, 3])
    assert gradcheck(
        lambda z: fd.distillation_loss(
            z, teacher, labels, divergence=divergence, temperature=temperature,
            scale_by_temperature_squared=True, reduction=reduction, **OPTIONS,
        ),
        student.requires_grad_(),
    )  # fmt: skip


def student_head(dtype=torch.float64):
    """hidden (3, 3), weight (7, 3), bias (7,)."""
    tensors = (
        randn(3, 3, seed=5, dtype=dtype),
        randn(7, 3, seed=6, dtype=dtype),
        randn(7, seed=7, dtype=dtype),
    )
    return tuple(tensor.requires_grad_() for tensor in tensors)


def test_linear(case):
    divergence, kind = case
    teacher = make_teacher(kind, 3, 7, dtype=torch.float64)
    assert gradcheck(
        lambda h, w, b: fd.linear_distillation_loss(
            h, w, teacher, student_bias=b, divergence=divergence, chunk_size=2
        ),
        student_head(),
    )


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("divergence_", CLASSES, ids=repr)
def test_linear_with_all_options(divergence_, reduction):
    teacher = make_teacher("head", 3, 9, dtype=torch.float64, softcap=5.0, valid_vocab=6)
    labels = torch.tensor([5, 0, 3])
    assert gradcheck(
        lambda h, w, b: fd.linear_distillation_loss(
            h, w, teacher, labels, student_bias=b, divergence=divergence_, temperature=1.7,
            student_valid_vocab=6, reduction=reduction, chunk_size=2, **OPTIONS,
        ),
        student_head(),
    )  # fmt: skip


def test_linear_of_every_teacher_with_labels(kind):
    temperature = 1.0 if kind == "sampled" else 1.7
    teacher = make_teacher(kind, 3, 7, temperature=temperature, dtype=torch.float64)
    labels = torch.tensor([6, -100, 3])
    assert gradcheck(
        lambda h, w, b: fd.linear_distillation_loss(
            h, w, teacher, labels, student_bias=b, temperature=temperature, **OPTIONS
        ),
        student_head(),
    )


def test_hard_loss_alone():
    labels = torch.tensor([6, 0, 3])
    student = randn(3, 7, dtype=torch.float64)
    assert gradcheck(
        lambda z: fd.distillation_loss(z, z.detach(), labels, soft_weight=0.0, hard_weight=1.0),
        student.requires_grad_(),
    )


def test_no_gradient_where_teacher_and_student_tie():
    """The subgradient 0 of |p - q| and one half of each side of min(p, q), as documented."""
    student = randn(2, 7, dtype=torch.float64).requires_grad_()
    for divergence in (fd.TotalVariation(), fd.NegativeLogAcceptance()):
        loss = fd.distillation_loss(student, student.detach().clone(), divergence=divergence)
        (gradient,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


def test_second_backward_adds_the_same_gradient():
    """The gradients of a linear loss are made once; using them twice must not change them."""
    hidden, weight, bias = student_head()
    loss = fd.linear_distillation_loss(hidden, weight, randn(3, 7, seed=1), student_bias=bias)
    loss.backward(retain_graph=True)
    once = [tensor.grad.clone() for tensor in (hidden, weight, bias)]
    loss.backward()
    for tensor, gradient in zip((hidden, weight, bias), once, strict=True):
        torch.testing.assert_close(tensor.grad, 2 * gradient)


def test_teacher_gets_no_gradient(kind):
    own = {"logits": ("logits",), "head": ("hidden", "weight", "bias"), "sampled": ("weights",)}
    names = own.get(kind, ("log_probs",))
    teacher = make_teacher(kind, 3, 7)
    for name in names:
        getattr(teacher, name).requires_grad_()
    hidden, weight, _ = student_head(torch.float32)
    fd.distillation_loss(randn(3, 7).requires_grad_(), teacher).backward()
    fd.linear_distillation_loss(hidden, weight, teacher).backward()
    assert all(getattr(teacher, name).grad is None for name in names)


@pytest.mark.parametrize("form", ["logits", "linear"])
def test_loss_scaling_reaches_float16_gradients(form):
    """Divided by 2^16 tokens a gradient is under float16's range, which is what scaling is for."""
    teacher = fd.TeacherLogits(randn(11, 33, seed=1))
    inputs = {"student_logits": randn(11, 33, dtype=torch.float16)}
    if form == "linear":
        inputs = {
            "student_hidden": randn(11, 13, dtype=torch.float16),
            "student_weight": randn(33, 13, seed=7, scale=0.5, dtype=torch.float16),
        }
    name = "distillation_loss" if form == "logits" else "linear_distillation_loss"
    scale, config = torch.tensor(2.0**16), {"num_items": 2**16}
    ours = run(getattr(fd, name), inputs, teacher, upstream=scale, **config)
    theirs = run(getattr(reference, name), inputs, teacher, upstream=scale, **config)
    exact = truth(getattr(reference, name), inputs, teacher, upstream=scale.double(), **config)
    for own, other, true in zip(ours, theirs, exact, strict=True):
        assert error(own, true) <= 2 * error(other, true) + 1e-6
