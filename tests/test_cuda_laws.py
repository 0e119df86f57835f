"""On a GPU: values, gradients and metrics against float64 on the CPU."""

from dataclasses import fields
from itertools import combinations

import pytest
import torch
from cases import (
    CLASSES,
    TAILS,
    assert_not_worse,
    double,
    form_inputs,
    linear_inputs,
    make_teacher,
    on,
    randn,
    run,
    top_k,
)
from torch.autograd import gradcheck

import fastdistill as fd

pytestmark = pytest.mark.cuda

DEVICE = "cuda"
# Less than a warp's share, none of a chunk's size; more than one segment of a list's map; clusters.
VOCABS = (1, 7, 33, 1000, 4097, 50257, 152064)


# ---- accuracy ----------------------------------------------------------------------------------


def test_logits_loss(case, dtype):
    divergence, kind = case
    assert_not_worse(
        fd.distillation_loss,
        {"student_logits": randn(2, 3, 33, scale=2.0, dtype=dtype)},
        make_teacher(kind, 2, 3, 33, dtype=dtype),
        divergence=divergence,
        device=DEVICE,
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
        device=DEVICE,
    )


@pytest.mark.parametrize("vocab_", VOCABS)
def test_vocabulary_sizes(divergence, vocab_):
    assert_not_worse(
        fd.distillation_loss,
        {"student_logits": randn(1, vocab_, scale=2.0)},
        make_teacher("logits", 1, vocab_),
        divergence=divergence,
        device=DEVICE,
    )


@pytest.mark.parametrize("vocab_", VOCABS)
def test_vocabulary_sizes_of_every_teacher(kind, dtype, vocab_):
    """Rows of odd width start anywhere in a packet; labels are the first, the last, another."""
    assert_not_worse(
        fd.distillation_loss,
        {"student_logits": randn(3, vocab_, scale=2.0, dtype=dtype)},
        make_teacher(kind, 3, vocab_, dtype=dtype),
        torch.tensor([0, vocab_ - 1, vocab_ // 2]),
        hard_weight=0.5,
        divergence=fd.ForwardKL() if kind == "sampled" else fd.JensenShannon(),
        device=DEVICE,
    )


@pytest.mark.parametrize("temperature", [0.3, 4.0])
@pytest.mark.parametrize("form", ["logits", "linear"])
def test_all_options_at_once(case, temperature, form):
    """Softcap, scale, temperature and hard labels on both sides; a padded vocabulary; a mask."""
    divergence, kind = case
    check_options(form, divergence, kind, temperature)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("form", ["logits", "linear"])
def test_reductions(case, form, reduction):
    """A reduced loss makes its gradients in the forward pass, the row losses in the backward."""
    divergence, kind = case
    check_options(form, divergence, kind, 2.0, reduction=reduction)


def check_options(form, divergence, kind, temperature, **config):
    temperature = 1.0 if kind == "sampled" else temperature
    dense = {"softcap": 5.0, "scale": 1.3, "valid_vocab": 29} if kind in ("logits", "head") else {}
    function, inputs = form_inputs(form, 5, 33)
    assert_not_worse(
        function,
        inputs,
        make_teacher(kind, 5, 33 if dense else 29, temperature=temperature, **dense),
        torch.tensor([0, 28, -100, 13, 5]),
        divergence=divergence,
        temperature=temperature,
        soft_weight=0.7,
        hard_weight=0.4,
        scale_by_temperature_squared=True,
        student_softcap=4.0,
        student_scale=0.8,
        student_valid_vocab=29,
        mask=torch.tensor([True, True, True, False, True]),
        weights=torch.tensor([0.5, 2.0, 1.0, 1.0, 1.5]),
        device=DEVICE,
        **config,
    )


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("dtype_", [torch.float32, torch.float64])
def test_listing_the_whole_vocabulary_is_the_dense_loss(tail, dtype_):
    student, teacher = (randn(2, 9001, seed=s, scale=2.0, dtype=torch.float64) for s in (0, 1))
    listed, student = top_k(teacher.log_softmax(-1), 9001, tail=tail), student.to(dtype_)
    config = {"divergence": fd.JensenShannon(), "reduction": "none", "device": DEVICE}
    results = [
        run(fd.distillation_loss, {"student_logits": student}, known, **config)
        for known in (listed, teacher.to(dtype_))
    ]
    eps = torch.finfo(dtype_).eps
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e3 * eps, atol=4 * eps)


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind_", ["logits", "bucket", "sampled"])
def test_teacher_of_another_dtype(kind_, dtype, other):
    """The arithmetic is the student's; the teacher's storage adds no rounding of its own."""
    student, teacher = randn(3, 33, dtype=dtype), make_teacher(kind_, 3, 33, dtype=other)
    value, gradient = run(
        fd.distillation_loss, {"student_logits": student}, teacher, reduction="none", device=DEVICE
    )
    assert gradient.dtype == dtype
    wide = {"student_logits": student.double()}
    exact, _ = run(fd.distillation_loss, wide, double(teacher), reduction="none")
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["logits", "linear"])
@pytest.mark.parametrize("dtype_", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_scaling_reaches_small_gradients(form, dtype_):
    """Divided by 2^16 tokens a gradient is under float16's range, which is what scaling is for."""
    function, inputs = form_inputs(form, 11, 33, dtype_)
    assert_not_worse(
        function, inputs, make_teacher("logits", 11, 33), reduction="mean", num_items=2.0**16,
        upstream=torch.tensor(2.0**16), device=DEVICE,
    )  # fmt: skip


@pytest.mark.parametrize("kind_", ["logits", "bucket", "uniform"])
@pytest.mark.parametrize("divergence_", CLASSES, ids=repr)
def test_gradients_are_finite_differences(divergence_, kind_):
    labels = torch.tensor([6, 0, 3], device=DEVICE)
    teacher = on(DEVICE, make_teacher(kind_, 3, 7, temperature=1.7, dtype=torch.float64))
    config = {"divergence": divergence_, "temperature": 1.7, "hard_weight": 0.6}
    head = (randn(3, 3, seed=5), randn(7, 3, seed=6), randn(7, seed=7))
    hidden, weight, bias = (tensor.to(DEVICE, torch.float64).requires_grad_() for tensor in head)
    logits = randn(3, 7, scale=2.0, dtype=torch.float64).to(DEVICE).requires_grad_()
    assert gradcheck(lambda z: fd.distillation_loss(z, teacher, labels, **config), logits)
    assert gradcheck(
        lambda h, w, b: fd.linear_distillation_loss(
            h, w, teacher, labels, student_bias=b, chunk_size=2, student_softcap=4.0, **config
        ),
        (hidden, weight, bias),
    )


HEAD = ("student_hidden", "student_weight", "student_bias")


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("wanted", [c for n in range(4) for c in combinations(HEAD, n)], ids=str)
def test_gradients_that_are_asked_for(wanted, reduction):
    inputs, teacher = linear_inputs(7, 13, 33), make_teacher("head", 7, 33)
    config = {"reduction": reduction, "chunk_size": 3}
    value, *gradients = run(fd.linear_distillation_loss, inputs, teacher, device=DEVICE, **config)
    leaves = on(DEVICE, inputs)
    for name in wanted:
        leaves[name].requires_grad_()
    loss = fd.linear_distillation_loss(**leaves, teacher=on(DEVICE, teacher), **config)
    torch.testing.assert_close(loss.detach().cpu(), value)
    assert loss.requires_grad == bool(wanted)
    if wanted:
        loss.backward(torch.linspace(0.5, 1.5, 7).to(DEVICE) if reduction == "none" else None)
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        assert (leaf.grad is not None) == (name in wanted)
        if name in wanted:
            torch.testing.assert_close(leaf.grad.cpu(), gradient)


# ---- metrics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_", [33, 2500, 50257])
@pytest.mark.parametrize("form", ["logits", "linear"])
def test_metrics(kind, form, vocab_):
    function, inputs = form_inputs(form, 9, vocab_)
    temperature = 1.0 if kind == "sampled" else 1.5
    teacher = make_teacher(kind, 9, vocab_, temperature=temperature)
    config = {
        "labels": torch.arange(9), "temperature": temperature, "hard_weight": 0.5,
        "mask": torch.arange(9) % 4 != 2, "weights": torch.linspace(0.5, 2.0, 9),
        "return_metrics": True,
    }  # fmt: skip
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    _, exact = function(**wide, teacher=double(teacher), **config)
    _, metrics = function(**on(DEVICE, inputs), teacher=on(DEVICE, teacher), **on(DEVICE, config))
    for field in fields(fd.Metrics):
        own, true = getattr(metrics, field.name), getattr(exact, field.name)
        assert (own is None) == (true is None)
        if own is not None:
            torch.testing.assert_close(own.cpu(), true, rtol=1e-5, atol=1e-6)


def test_first_of_tied_maxima_counts():
    logits, other = torch.zeros(2, 2, 40000, device=DEVICE)
    logits[0, [3, 31400]] = 2.0
    for place, agreement in ((3, 1.0), (31400, 0.5)):
        other.zero_()[0, place] = 1.0
        _, metrics = fd.distillation_loss(logits, other, return_metrics=True)
        assert metrics.top1_agreement == agreement
