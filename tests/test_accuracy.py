"""Our error against float64 is not larger than that of plain torch in the same dtype."""

import pytest
import torch
from cases import (
    TEACHERS,
    assert_not_worse,
    double,
    error,
    linear_inputs,
    make_teacher,
    randn,
    run,
    truth,
)

import fastdistill as fd
from fastdistill import reference


def test_logits_loss(case, dtype, isa):
    divergence, kind = case
    teacher = make_teacher(kind, 2, 3, 33, dtype=dtype)
    assert_not_worse(
        fd.distillation_loss,
        {"student_logits": randn(2, 3, 33, scale=2.0, dtype=dtype)},
        teacher,
        divergence=divergence,
    )


@pytest.mark.parametrize("form", ["logits", "renormalize", "bucket"])
def test_vocabulary_sizes(divergence, vocab, form, isa):
    """Dense rows, short rows, and rows with a tail, around the widths of vectors and tiles."""
    assert_not_worse(
        fd.distillation_loss,
        {"student_logits": randn(3, vocab, scale=2.0)},
        make_teacher(form, 3, vocab),
        divergence=divergence,
    )


def test_reduced_loss_is_the_sum_of_the_row_losses(case, dtype):
    """It makes its gradient in the forward pass, the row losses in the backward."""
    divergence, kind = case
    inputs = {"student_logits": randn(4, 33, scale=2.0, dtype=dtype)}
    teacher, labels = make_teacher(kind, 4, 33, dtype=dtype), torch.tensor([0, 32, -100, 13])
    weights, scale = torch.tensor([0.5, 2.0, 1.0, 1.0]), 4.0
    config = {"divergence": divergence, "hard_weight": 0.4}
    upstream = scale * weights.to(torch.promote_types(dtype, torch.float32))
    value, gradient = run(
        fd.distillation_loss, inputs, teacher, labels, reduction="none", upstream=upstream, **config
    )
    reduced, by_sum = run(
        fd.distillation_loss, inputs, teacher, labels, reduction="sum", weights=weights,
        upstream=torch.tensor(scale, dtype=upstream.dtype), **config,
    )  # fmt: skip
    torch.testing.assert_close(reduced, (value * weights).sum())
    # A power of two scales without rounding; half precision may round either way what is nearly
    # halfway between two of its numbers.
    rounding = 8 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    storage = torch.finfo(dtype).eps
    torch.testing.assert_close(by_sum, gradient, rtol=max(rounding, storage), atol=rounding)


def test_reduced_loss_of_several_tiles(case, dtype, isa):
    """Its gradient comes from the exps of its forward pass, that of row losses from the logits."""
    divergence, kind = case
    inputs = {"student_logits": randn(2, 1100, scale=2.0, dtype=dtype)}
    teacher, config = make_teacher(kind, 2, 1100, dtype=dtype), {"divergence": divergence}
    arithmetic = torch.promote_types(dtype, torch.float32)
    ones = torch.ones(2, dtype=arithmetic)
    by_row = run(fd.distillation_loss, inputs, teacher, reduction="none", upstream=ones, **config)
    by_sum = run(fd.distillation_loss, inputs, teacher, reduction="sum", **config)
    rounding = 16 * torch.finfo(arithmetic).eps
    torch.testing.assert_close(by_sum[0], by_row[0].sum())
    torch.testing.assert_close(
        by_sum[1], by_row[1], rtol=max(rounding, torch.finfo(dtype).eps), atol=rounding
    )


@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_all_options_at_once(case, temperature, isa):
    """Softcap, scale, temperature and hard labels on both sides; a padded vocabulary."""
    divergence, kind = case
    if kind == "sampled":
        temperature = 1.0  # the only one it has
    dense = {"softcap": 5.0, "scale": 1.3, "valid_vocab": 29} if kind in ("logits", "head") else {}
    width = 33 if dense else 29
    teacher = make_teacher(kind, 4, width, temperature=temperature, **dense)
    assert_not_worse(
        fd.distillation_loss,
        {"student_logits": randn(4, 33, scale=2.0)},
        teacher,
        torch.tensor([0, 28, -100, 13]),
        divergence=divergence,
        temperature=temperature,
        soft_weight=0.7,
        hard_weight=0.4,
        scale_by_temperature_squared=True,
        student_softcap=4.0,
        student_scale=0.8,
        student_valid_vocab=29,
        mask=torch.tensor([True, True, True, False]),
        weights=torch.tensor([0.5, 2.0, 1.0, 1.0]),
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_linear_loss(case, dtype, bias):
    divergence, kind = case
    assert_not_worse(
        fd.linear_distillation_loss,
        linear_inputs(7, 13, 33, dtype, bias),
        make_teacher(kind, 7, 33, dtype=dtype),
        divergence=divergence,
        chunk_size=3,
    )


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_linear_loss_with_all_options(kind, isa, reduction):
    """The mean makes its gradients in the forward pass, the row losses in the backward."""
    dense = {"softcap": 5.0, "scale": 1.3, "valid_vocab": 29} if kind in ("logits", "head") else {}
    temperature = 1.0 if kind == "sampled" else 2.0
    teacher = make_teacher(kind, 7, 33 if dense else 29, temperature=temperature, **dense)
    inputs = linear_inputs(7, 13, 33)
    labels = torch.tensor([0, 28, -100, 13, 1, 2, 3])
    config = {
        "temperature": temperature,
        "hard_weight": 0.4,
        "student_softcap": 4.0,
        "student_scale": 0.8,
        "student_valid_vocab": 29,
        "weights": torch.linspace(0.5, 2.0, 7),
        "reduction": reduction,
    }
    ours = run(fd.linear_distillation_loss, inputs, teacher, labels, chunk_size=2, **config)
    true = truth(reference.linear_distillation_loss, inputs, teacher, labels, **config)
    for own, exact in zip(ours, true, strict=True):
        assert error(own, exact) < 2e-6 * exact.abs().max()


@pytest.mark.parametrize("mixed", [torch.bfloat16, torch.float64])
def test_teacher_of_another_dtype(kind, mixed):
    """The arithmetic is the student's; the teacher's storage adds no rounding of its own."""
    teacher = make_teacher(kind, 4, 33, dtype=mixed)
    student = {"student_logits": randn(4, 33)}
    ours = run(fd.distillation_loss, student, teacher)
    true = truth(reference.distillation_loss, student, teacher)
    # A bfloat16 head makes logits that are rounded to bfloat16 where F.linear does so too.
    limit = 1e-2 if kind == "head" and mixed == torch.bfloat16 else 2e-6
    for own, exact in zip(ours, true, strict=True):
        assert error(own, exact) < limit * exact.abs().max()


@pytest.mark.parametrize("kind_", [k for k in TEACHERS if k not in ("logits", "head")])
def test_lists_keep_float64(kind_):
    """A float64 list is not rounded on its way to a float64 student."""
    teacher = make_teacher(kind_, 4, 33, dtype=torch.float64)
    student = {"student_logits": randn(4, 33, dtype=torch.float64)}
    ours = run(fd.distillation_loss, student, teacher)
    true = truth(reference.distillation_loss, student, double(teacher))
    for own, exact in zip(ours, true, strict=True):
        assert error(own, exact) < 1e-14
