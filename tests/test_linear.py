"""The loss of hidden states and a head: chunks, frozen parameters, counted rows, precision."""

import math
from dataclasses import replace

import pytest
import torch
from cases import (
    CLASSES,
    TEACHERS,
    assert_autocast_computes_as_linear_does,
    double,
    error,
    make_teacher,
    randn,
    run,
    truth,
)
from torch.nn import functional as F

import fastdistill as fd
from fastdistill import _autograd, _head, _ops, reference

ROWS, WIDTH, VOCAB = 11, 13, 33
PER_TOKEN = ("logits", "hidden", "ids", "log_probs", "weights")  # fields of the teachers


def student(dtype=torch.float32, bias=True, rows=ROWS):
    inputs = {
        "student_hidden": randn(rows, WIDTH, dtype=dtype),
        "student_weight": randn(VOCAB, WIDTH, seed=7, scale=0.5, dtype=dtype),
        "student_bias": randn(VOCAB, seed=8, dtype=dtype),
    }
    if not bias:
        del inputs["student_bias"]
    return inputs


def linear(inputs, teacher, labels=None, **config):
    return run(fd.linear_distillation_loss, inputs, teacher, labels, **config)


def same(actual, expected, **tolerance):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


# ---- chunks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("chunk_size", [1, 4, 10, 11, 1000])
def test_chunking_does_not_matter(kind, chunk_size, reduction):
    mask = torch.arange(ROWS) % 4 != 2
    config = {"mask": mask, "reduction": reduction, "chunk_size": chunk_size}
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        teacher = make_teacher(kind, ROWS, VOCAB, dtype=dtype)
        results = linear(student(dtype), teacher, **config)
        whole = linear(student(dtype), teacher, **config | {"chunk_size": None})
        same(results, whole, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("bias", [True, False])
def test_pieces_of_the_vocabulary_do_not_matter(dtype, bias, monkeypatch):
    inputs, teacher = student(dtype, bias), make_teacher("head", ROWS, VOCAB, dtype=dtype)
    whole = linear(inputs, teacher, reduction="none")
    monkeypatch.setattr(_head, "_LOGIT_COLUMNS", 10)  # the last has three
    monkeypatch.setattr(_head, "_PANEL_BYTES", 4 * 7 * WIDTH)
    heights, panels = set(), _head.Head._panels

    def recorded(head, most):
        for panel, weight in panels(head, most):
            heights.add(weight.shape[0])
            yield panel, weight

    monkeypatch.setattr(_head.Head, "_panels", recorded)
    same(linear(inputs, teacher, reduction="none"), whole, rtol=1e-5, atol=1e-6)
    assert dtype.itemsize == 2 or heights == {10, 3, VOCAB}
    assert dtype != torch.float16 or heights >= {7, 5}  # no processor multiplies it as it is


@pytest.mark.parametrize("divergence_", CLASSES, ids=repr)
def test_is_the_logits_loss_of_the_heads_output(divergence_):
    def by_logits(student_hidden, student_weight, student_bias, teacher, labels, **config):
        logits = F.linear(student_hidden, student_weight, student_bias)
        own = F.linear(teacher.hidden, teacher.weight, teacher.bias)
        return fd.distillation_loss(logits, own, labels, **config)

    inputs, teacher = student(torch.float64), make_teacher("head", ROWS, VOCAB, dtype=torch.float64)
    config = {"divergence": divergence_, "reduction": "none"}
    same(
        linear(inputs, teacher, **config), run(by_logits, inputs, teacher, **config),
        rtol=1e-10, atol=1e-12,
    )  # fmt: skip


def test_row_losses_with_an_upstream_gradient_are_the_weighted_sum(kind):
    """reduction="none" makes its gradients in the backward, "sum" in the forward: the same ones."""
    teacher = make_teacher(kind, ROWS, VOCAB, dtype=torch.float64)
    weights = randn(ROWS, seed=3, dtype=torch.float64)
    _, *by_rows = linear(student(torch.float64), teacher, reduction="none", upstream=weights)
    _, *by_sum = linear(student(torch.float64), teacher, reduction="sum", weights=weights)
    same(by_rows, by_sum, rtol=1e-12, atol=1e-13)


def test_micro_batches_with_num_items_sum_to_the_whole_batch(kind):
    inputs, labels = student(torch.float64), torch.arange(ROWS)
    labels[[1, 5, 6]] = -100
    weights = torch.linspace(0.5, 2.0, ROWS)
    teacher = make_teacher(kind, ROWS, VOCAB, dtype=torch.float64)
    config = {"hard_weight": 0.5, "num_items": torch.tensor(8)}
    whole = linear(inputs, teacher, labels, weights=weights, **config)
    total = [0.0] * len(whole)
    for rows in torch.arange(ROWS).split([1, 6, 4]):  # uneven
        part = dict(inputs, student_hidden=inputs["student_hidden"][rows])
        cut = {name: getattr(teacher, name)[rows] for name in PER_TOKEN if hasattr(teacher, name)}
        results = linear(
            part, replace(teacher, **cut), labels[rows], weights=weights[rows], **config
        )
        total[0] = total[0] + results[0]
        total[1] = results[1] if isinstance(total[1], float) else torch.cat([total[1], results[1]])
        total[2], total[3] = total[2] + results[2], total[3] + results[3]
    same(total, whole, rtol=1e-12, atol=1e-13)


# ---- only what is asked for --------------------------------------------------------------------


class Spy:
    """Wraps a method of a class and keeps the arguments of its calls."""

    def __init__(self, monkeypatch, owner, name):
        self.calls, original = [], getattr(owner, name)

        def wrapped(instance, *args, **kwargs):
            self.calls.append(args)
            return original(instance, *args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("wanted", ["student_hidden", "student_weight", "student_bias"])
def test_frozen_tensors_cost_nothing(monkeypatch, wanted, reduction):
    inputs = student()
    everything = dict(
        zip(
            inputs, linear(inputs, randn(ROWS, VOCAB, seed=1), reduction=reduction)[1:], strict=True
        )
    )
    weight_buffers = Spy(monkeypatch, _head.WeightGradient, "__init__")
    hidden_gemms = Spy(monkeypatch, _head.Head, "grad_hidden")
    inputs[wanted].requires_grad_()
    loss = fd.linear_distillation_loss(
        **inputs, teacher=randn(ROWS, VOCAB, seed=1), reduction=reduction
    )
    loss.backward(torch.linspace(0.5, 1.5, ROWS) if reduction == "none" else None)
    torch.testing.assert_close(inputs[wanted].grad, everything[wanted])
    assert all(tensor.grad is None for name, tensor in inputs.items() if name != wanted)
    assert bool(weight_buffers.calls) == (wanted == "student_weight")
    assert bool(hidden_gemms.calls) == (wanted == "student_hidden")


def test_no_gradient_work_without_grad_mode(monkeypatch):
    inputs = {name: tensor.requires_grad_() for name, tensor in student().items()}
    weight_buffers = Spy(monkeypatch, _head.WeightGradient, "__init__")
    with torch.no_grad():
        loss = fd.linear_distillation_loss(**inputs, teacher=randn(ROWS, VOCAB, seed=1))
    assert not loss.requires_grad
    assert not weight_buffers.calls


def test_uncounted_rows_reach_no_gemm(monkeypatch):
    gemms = Spy(monkeypatch, _head.Head, "logits")
    labels = torch.arange(ROWS)
    labels[3] = -100
    mask = torch.arange(ROWS) < 6
    results = linear(student(), make_teacher("head", ROWS, VOCAB), labels, mask=mask, chunk_size=2)
    assert sum(args[0].shape[0] for args in gemms.calls) == 2 * 5  # student and teacher
    gradient = results[1]
    assert (gradient[3] == 0).all()
    assert (gradient[6:] == 0).all()


def test_padding_rows_of_the_head_get_zero_gradient():
    value, by_hidden, by_weight, by_bias = linear(
        student(), make_teacher("logits", ROWS, 29), student_valid_vocab=29
    )
    inputs = student()
    cut = dict(
        inputs,
        student_weight=inputs["student_weight"][:29],
        student_bias=inputs["student_bias"][:29],
    )
    expected = linear(cut, make_teacher("logits", ROWS, 29))
    same((value, by_hidden, by_weight[:29], by_bias[:29]), expected, rtol=1e-6, atol=1e-8)
    assert (by_weight[29:] == 0).all()
    assert (by_bias[29:] == 0).all()


# ---- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype_", [torch.bfloat16, torch.float16])
def test_autocast_computes_as_linear_does(dtype_, reduction):
    assert_autocast_computes_as_linear_does(student(rows=64), dtype_, reduction, "cpu", 1.25, 0.0)


def test_logits_loss_under_autocast_runs_the_teachers_head_in_its_dtype():
    logits, teacher = {"student_logits": randn(8, VOCAB)}, make_teacher("head", 8, VOCAB)
    plain = run(fd.distillation_loss, logits, teacher)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = run(fd.distillation_loss, logits, teacher)[0]
    assert 1e-6 < error(value, plain) < 0.05 * plain


@pytest.mark.parametrize("dtype_", [torch.bfloat16, torch.float16])
def test_logits_that_are_not_rounded(dtype_):
    """logits_dtype=float32: a product of half-precision operands, exact to float32."""
    inputs, teacher = student(dtype_), make_teacher("head", ROWS, VOCAB, dtype=dtype_)
    ours = linear(inputs, teacher, logits_dtype=torch.float32, reduction="none")
    exact = truth(reference.linear_distillation_loss, inputs, teacher, reduction="none")
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=1e-5)
    eps = torch.finfo(dtype_).eps
    for own, true in zip(ours[1:], exact[1:], strict=True):
        assert own.dtype == dtype_
        torch.testing.assert_close(own.double(), true, rtol=eps, atol=1e-5)


@pytest.mark.parametrize("kind_", [k for k in TEACHERS if k != "sampled"])
@pytest.mark.parametrize("dtype_", [torch.bfloat16, torch.float64])
def test_teacher_of_another_dtype_and_width(kind_, dtype_):
    inputs, teacher = student(), make_teacher(kind_, ROWS, VOCAB, dtype=dtype_)
    ours = linear(inputs, teacher)
    exact = truth(reference.linear_distillation_loss, inputs, double(teacher))
    limit = 2e-2 if kind_ == "head" and dtype_ == torch.bfloat16 else 2e-6
    for own, true in zip(ours, exact, strict=True):
        assert error(own, true) <= limit * true.abs().max()


def test_weight_gradient_is_accumulated_in_float32():
    """512 chunks of bfloat16 add no more error than one; summed in bfloat16 they would."""
    rows = 512
    inputs, teacher = student(torch.bfloat16, rows=rows), randn(rows, VOCAB, seed=1)
    inputs["student_hidden"] = inputs["student_hidden"].abs() + 1  # a sum that grows
    exact = truth(
        reference.linear_distillation_loss, inputs, fd.TeacherLogits(teacher), reduction="sum"
    )
    one, many = (
        linear(inputs, teacher, reduction="sum", chunk_size=chunk)[2] for chunk in (rows, 1)
    )
    assert many.dtype == torch.bfloat16
    assert error(many, exact[2]) <= 2 * error(one, exact[2])
    parts = torch.zeros_like(many)
    for row in range(rows):
        part = dict(inputs, student_hidden=inputs["student_hidden"][row : row + 1])
        parts += linear(part, teacher[row : row + 1], reduction="sum")[2]
    assert error(parts, exact[2]) > 4 * error(many, exact[2])


def test_upstream_gradient_of_a_reduced_loss_scales_all_gradients():
    inputs, teacher = student(), randn(ROWS, VOCAB, seed=1)
    _, *once = linear(inputs, teacher)
    _, *scaled = linear(inputs, teacher, upstream=torch.tensor(-2.5))
    same(scaled, [-2.5 * gradient for gradient in once])


# ---- a host that does not wait for the device ----------------------------------------------------


def test_rows_are_the_same_where_the_host_may_not_look_at_the_mask(monkeypatch):
    """On CUDA every row is walked over and the kernels leave out those that do not count."""
    hidden, weight = randn(6, 5, seed=1), randn(11, 5, seed=2)
    teacher = fd.TeacherHead(randn(6, 7, seed=3), randn(11, 7, seed=4))
    mask = torch.tensor([True, False, True, True, False, True])
    hidden[1] = torch.nan
    config = {"mask": mask, "chunk_size": 4}
    inputs = {"student_hidden": hidden, "student_weight": weight}
    expected = run(fd.linear_distillation_loss, inputs, teacher, **config)
    for module in (_ops, _autograd):
        monkeypatch.setattr(module, "host_sees_data", lambda _: False)
    found = run(fd.linear_distillation_loss, inputs, teacher, **config)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


# ---- a teacher without weight --------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_teacher_that_counts_for_nothing_is_not_looked_at(case, dtype, reduction):
    divergence, kind = case
    temperature = 1.0 if kind == "sampled" else 2.0
    teacher = make_teacher(kind, ROWS, VOCAB, dtype=dtype, temperature=temperature)
    for name in {"logits", "hidden", "log_probs", "weights"} & set(vars(teacher)):
        teacher = replace(teacher, **{name: torch.full_like(getattr(teacher, name), math.nan)})
    labels = torch.arange(ROWS).where(torch.arange(ROWS) != 3, -100)
    losses = {
        "soft_weight": 0.0, "hard_weight": 1.0, "reduction": reduction,
        "temperature": temperature,
    }  # fmt: skip
    unheard = linear(student(dtype), teacher, labels, divergence=divergence, **losses)
    cross_entropy = truth(
        reference.linear_distillation_loss, student(dtype), fd.TeacherLogits(randn(ROWS, VOCAB)),
        labels, **losses,
    )  # fmt: skip
    tolerance = 3e-2 if dtype.itemsize == 2 else 1e-5
    same(
        [x.double() for x in unheard],
        cross_entropy,
        rtol=tolerance,
        atol=tolerance,
        check_dtype=False,
    )
